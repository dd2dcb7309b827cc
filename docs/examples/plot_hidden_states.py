"""
Half of a population predicts the other half
============================================

Spikes of a population that four hidden states drive. From one half of the neurons, a recurrent network
predicts the other half in presentations that it never saw, better than ridge regression with delays.
"""

import warnings

import matplotlib.pyplot as plt

import neurodl as ndl

exp = ndl.load_dataset(
    "simulated_population", n_presentations=30, n_units=40, n_bins=60, n_latents=4
)
series = ndl.as_runs(exp.responses)
one, other = dict.fromkeys(series["roi"].values)
X = ndl.population_features(ndl.select(series, roi=one))
Y = ndl.select(series, roi=other)

models = {
    "ridge, 5 bins": ndl.RidgeCV(delays=range(5)),
    "RNN": ndl.SequenceEncoder("rnn", hidden_size=8, lr=0.01, batch_size=16, max_epochs=80),
}
bits = {}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ndl.NeurodlWarning)  # all epochs are used: it could go on
    for name, model in models.items():
        scores = ndl.cross_validate(model, X, Y, cv=2, metrics=["bits_per_spike"])
        bits[name] = float(scores["bits_per_spike"].mean())
print(bits)

# %%
figure, axis = plt.subplots(figsize=(4, 3))
axis.bar(list(bits), list(bits.values()))
axis.set_ylabel("bits per spike, held out")
figure.tight_layout()
