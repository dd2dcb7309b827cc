"use strict";
// Tables: click a heading to sort, copy as tab-separated text.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.firstChild?.textContent ?? "";
    return text.trim() === "" || text.trim() === "–" ? NaN : Number(text);
  };
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const words = [...body.rows].every(row => isNaN(value(row, column)));
      const first = words || column === 0 ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const text = row => row.cells[column].textContent.trim();
      const compare = (a, b) => {
        if (words) return sign * text(a).localeCompare(text(b), undefined, {numeric: true});
        const [x, y] = [value(a, column), value(b, column)];
        // Rows without a number stay at the end either way.
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

// What stands small below a value becomes a column of its own.
function asText(table) {
  const heads = [...table.tHead.rows[0].cells];
  const cells = row => heads.flatMap((head, column) => {
    const cell = row.cells[column];
    const shown = [...cell.childNodes].filter(node => node.nodeName !== "SMALL" && !node.ariaHidden);
    const main = shown.map(node => node.textContent).join("").trim();
    if (head.dataset.below === undefined) return [main];
    return [main, row === table.tHead.rows[0] ? head.dataset.below : cell.querySelector("small")?.textContent ?? ""];
  });
  return [...table.rows].map(row => cells(row).join("\t")).join("\n");
}
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const table = document.getElementById(button.dataset.table);
    try {
      await navigator.clipboard.writeText(asText(table));
      button.textContent = "Copied";
    } catch {
      // Without leave to write to the clipboard, select the table for the reader.
      getSelection().selectAllChildren(table);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy table"; }, 2500);
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(each => { each.open = true; }));

// Figures: every one can be taken along as SVG, PNG and the numbers in it.
function take(name, blob) {
  const link = Object.assign(document.createElement("a"), {download: name, href: URL.createObjectURL(blob)});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function drawing(svg) {
  // Outside the page there are no variables: colours and fonts are written out, on white.
  const copy = svg.cloneNode(true);
  const style = getComputedStyle(document.documentElement);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  copy.setAttribute("style", `background:${style.getPropertyValue("--page")};color:${style.getPropertyValue("--ink")};font-family:sans-serif`);
  const text = new XMLSerializer().serializeToString(copy);
  return {width, height, text: text.replace(/var\((--[a-z0-9-]+)\)/g, (_, key) => style.getPropertyValue(key).trim())};
}
function picture(svg) {
  const {width, height, text} = drawing(svg);
  return new Promise((done, failed) => {
    const image = new Image();
    image.onerror = failed;
    image.onload = () => {
      const canvas = Object.assign(document.createElement("canvas"), {width: 3 * width, height: 3 * height});
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(done, "image/png");
    };
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  });
}
function offer(figure, kinds) {
  const row = Object.assign(document.createElement("div"), {className: "take"});
  for (const [kind, make] of Object.entries(kinds)) {
    const button = Object.assign(document.createElement("button"), {type: "button", textContent: kind});
    const name = figure.dataset.name || figure.textContent.trim().replace(/[^A-Za-z0-9]+/g, "-");
    button.setAttribute("aria-label", `Save ${name} as ${kind}`);
    button.addEventListener("click", async () => take(`${name}.${kind.toLowerCase()}`, await make()));
    row.append(button);
  }
  figure.append(row);
}
for (const figure of document.querySelectorAll("figure.panel")) {
  const svg = figure.querySelector("svg");
  const numbers = JSON.parse(figure.querySelector(".numbers").textContent);
  offer(figure, {
    SVG: () => new Blob([drawing(svg).text], {type: "image/svg+xml"}),
    PNG: () => picture(svg),
    TSV: () => new Blob([numbers], {type: "text/tab-separated-values"}),
  });
}
for (const figure of document.querySelectorAll("figure.picture")) {
  const bytes = () => Uint8Array.from(atob(figure.querySelector("img").src.split(",")[1]), c => c.charCodeAt(0));
  offer(figure, {PNG: () => new Blob([bytes()], {type: "image/png"})});
}

// The brain to turn: two hemispheres in WebGL, coloured per vertex.
const REACH = 108;
const stored = document.getElementById("viewer-data");
if (stored) startViewer(JSON.parse(stored.textContent));

function startViewer(data) {
  const canvas = document.getElementById("viewer-canvas");
  const gl = canvas.getContext("webgl", {antialias: true, alpha: true});
  if (!gl) return;
  document.getElementById("viewer").hidden = false;
  const bytes = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));
  const program = compile(gl);
  const sides = data.hemispheres.map(side => prepare(gl, side, bytes));
  const select = document.getElementById("viewer-map");
  data.names.forEach((name, index) => select.add(new Option(name, index, false, index === data.chosen)));
  if (data.rois.length) select.add(new Option("ROIs", "rois"));
  const angles = {Left: [-90, 0], Right: [90, 0], Back: [0, 0], Below: [0, -90], Above: [0, 90], Front: [180, 0]};
  let [turn, tilt] = firstView(sides, data.chosen), matrix = [];

  const paint = () => {
    const rgb = data.rois.map(roi => [1, 3, 5].map(at => parseInt(roi.colour.slice(at, at + 2), 16)));
    for (const side of sides) {
      const shown = select.value === "rois" ? side.rois : side.maps[Number(select.value)];
      const colours = new Uint8Array(3 * shown.length);
      shown.forEach((code, vertex) => {
        const grey = 212 - 58 * side.depth[vertex] / 255;
        for (let c = 0; c < 3; c++) {
          colours[3 * vertex + c] = code === 0 ? grey
            : select.value === "rois" ? rgb[code - 1][c] : data.colours[3 * (code - 1) + c];
        }
      });
      gl.bindBuffer(gl.ARRAY_BUFFER, side.colours);
      gl.bufferData(gl.ARRAY_BUFFER, colours, gl.STATIC_DRAW);
      side.shown = shown;
    }
    draw();
  };
  const draw = () => {
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.enable(gl.DEPTH_TEST);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    matrix = rotation(turn * Math.PI / 180, tilt * Math.PI / 180);
    // This many millimetres fit from the centre to the nearer edge.
    const scale = 1 / REACH;
    const aspect = Math.min(canvas.width, canvas.height);
    gl.uniformMatrix3fv(program.turn, false, columns(matrix));
    gl.uniform3f(program.scale, scale * aspect / canvas.width, scale * aspect / canvas.height, -scale / 2);
    for (const side of sides) {
      attribute(gl, program.point, side.points, 3, gl.FLOAT, false);
      attribute(gl, program.normal, side.normals, 3, gl.FLOAT, false);
      attribute(gl, program.colour, side.colours, 3, gl.UNSIGNED_BYTE, true);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, side.index);
      gl.drawElements(gl.TRIANGLES, side.n, gl.UNSIGNED_SHORT, 0);
    }
  };
  const read = event => {
    const half = Math.min(canvas.clientWidth, canvas.clientHeight) / 2;
    const scale = half / REACH;
    const x = (event.offsetX - canvas.clientWidth / 2) / scale;
    const y = (canvas.clientHeight / 2 - event.offsetY) / scale;
    let best = {depth: -Infinity};
    sides.forEach((side, which) => {
      for (let v = 0; v < side.depth.length; v++) {
        const [px, py, pz] = multiply(matrix, side.xyz, 3 * v);
        if ((px - x) ** 2 + (py - y) ** 2 < 6 && pz > best.depth) best = {depth: pz, which, v};
      }
    });
    const output = document.getElementById("viewer-value");
    if (best.v === undefined) return void (output.textContent = "Drag to turn; point at the cortex to read values.");
    const side = sides[best.which];
    const roi = data.rois[(side.rois[best.v] || 0) - 1]?.name;
    const code = side.shown[best.v];
    const r = select.value === "rois" ? (roi ? null : "no ROI")
      : code === 0 ? "no score" : `r = ${code === 1 ? "0 or less" : ((code - 1) / 254 * data.limit).toFixed(2) + (code === 255 ? " or more" : "")}`;
    output.textContent = [["left", "right"][best.which] + " hemisphere", roi, r].filter(Boolean).join(" · ");
  };
  canvas.addEventListener("pointerdown", event => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", event => {
    if (!event.buttons) return read(event);
    turn -= event.movementX * 0.5;
    tilt = Math.max(-90, Math.min(90, tilt + event.movementY * 0.5));
    requestAnimationFrame(draw);
  });
  canvas.addEventListener("keydown", event => {
    const step = {ArrowLeft: [10, 0], ArrowRight: [-10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10]}[event.key];
    if (!step) return;
    event.preventDefault();
    turn += step[0];
    tilt = Math.max(-90, Math.min(90, tilt + step[1]));
    draw();
  });
  for (const [name, [t, u]] of Object.entries(angles)) {
    const button = Object.assign(document.createElement("button"), {type: "button", textContent: name});
    button.addEventListener("click", () => { turn = t; tilt = u; draw(); });
    document.querySelector("#viewer .views").append(button);
  }
  select.addEventListener("change", paint);
  addEventListener("resize", draw);
  paint();
}

// Turn [degrees] and tilt towards where the values are, a little from the side.
function firstView(sides, chosen) {
  const sum = [0, 0, 0];
  for (const side of sides) {
    side.maps[chosen].forEach((code, v) => {
      const n = side.normal.subarray(3 * v, 3 * v + 3);
      const length = Math.hypot(...n) || 1;
      for (let i = 0; i < 3; i++) sum[i] += code * n[i] / length;
    });
  }
  const length = Math.hypot(...sum);
  if (length === 0) return [-35, 8];
  const [x, y, z] = sum.map(value => value / length);
  const degrees = 180 / Math.PI;
  return [Math.atan2(x, -y) * degrees - 20, Math.max(-35, Math.min(35, Math.asin(z) * degrees))];
}

function prepare(gl, side, bytes) {
  const xyz = Float32Array.from(new Int16Array(bytes(side.points).buffer), value => value / 100);
  const faces = new Uint16Array(bytes(side.faces).buffer);
  const normals = new Float32Array(xyz.length);
  for (let f = 0; f < faces.length; f += 3) {
    const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
    const u = [0, 1, 2].map(i => xyz[b + i] - xyz[a + i]);
    const v = [0, 1, 2].map(i => xyz[c + i] - xyz[a + i]);
    const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    for (const corner of [a, b, c]) for (let i = 0; i < 3; i++) normals[corner + i] += n[i];
  }
  const buffer = (kind, values) => {
    const made = gl.createBuffer();
    gl.bindBuffer(kind, made);
    gl.bufferData(kind, values, gl.STATIC_DRAW);
    return made;
  };
  return {
    xyz, normal: normals, n: faces.length, depth: bytes(side.depth), maps: side.maps.map(bytes), rois: bytes(side.rois),
    points: buffer(gl.ARRAY_BUFFER, xyz), normals: buffer(gl.ARRAY_BUFFER, normals),
    index: buffer(gl.ELEMENT_ARRAY_BUFFER, faces), colours: gl.createBuffer(), shown: [],
  };
}

function compile(gl) {
  const vertex = `attribute vec3 point, normal, colour; uniform mat3 turn; uniform vec3 scale; varying vec3 shade;
    void main() {
      vec3 facing = normalize(turn * normal);
      float light = 0.5 + 0.5 * max(dot(facing, normalize(vec3(0.15, 0.35, 0.92))), 0.0);
      shade = colour * light;
      gl_Position = vec4(turn * point * scale, 1.0);
    }`;
  const fragment = "precision mediump float; varying vec3 shade; void main() { gl_FragColor = vec4(shade, 1.0); }";
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  return {
    point: gl.getAttribLocation(program, "point"), normal: gl.getAttribLocation(program, "normal"),
    colour: gl.getAttribLocation(program, "colour"),
    turn: gl.getUniformLocation(program, "turn"), scale: gl.getUniformLocation(program, "scale"),
  };
}

function attribute(gl, place, buffer, size, type, normalise) {
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, size, type, normalise, 0, 0);
}

// From scanner axes (x right, y front, z up), seen from behind, turned about z, then tilted.
function rotation(turn, tilt) {
  const [c, s, d, t] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
  const right = [c, s, 0];
  const eye = [s * d, -c * d, t];
  const up = [eye[1] * right[2] - eye[2] * right[1], eye[2] * right[0] - eye[0] * right[2], eye[0] * right[1] - eye[1] * right[0]];
  return [right, up, eye];
}

function columns(rows) {
  return [0, 1, 2].flatMap(column => rows.map(row => row[column]));
}

function multiply(rows, xyz, at) {
  return rows.map(row => row[0] * xyz[at] + row[1] * xyz[at + 1] + row[2] * xyz[at + 2]);
}
