# %%
# In Colab this installs what is missing and fetches the project's modules; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import os
    import subprocess

    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "neurodl[finetune,hf]"], check=True)
    address = "{{ repository }}"
    if address and not os.path.exists("common.py"):
        subprocess.run(["git", "clone", "-q", address, "project"], check=True)
        os.chdir("project")
        sys.path.insert(0, os.getcwd())
