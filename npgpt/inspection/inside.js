// Writes the numbers of a token, its title, below the text when the token is pointed at, clicked or reached by arrow keys.
for (const part of document.querySelectorAll(".points")) {
  const pieces = [...part.querySelectorAll("[title]")], readout = part.querySelector(".readout");
  const columns = +part.dataset.columns || 1;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const tell = (event) => {
    const piece = event.target.closest("[title]");
    if (piece) readout.textContent = piece.title;
    return piece;
  };
  const go = (to) => pieces.forEach((piece) => { piece.tabIndex = piece === to ? 0 : -1; });
  part.onpointerover = tell;
  for (const kind of ["focusin", "click"])
    part.addEventListener(kind, (event) => {
      const piece = tell(event);
      if (piece) go(piece);
    });
  part.onkeydown = (event) => {
    const next = pieces[pieces.indexOf(event.target.closest("[title]")) + steps[event.key]];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  };
  go(pieces[0]);  // one of them is reached by Tab, the others from it
}

// Shows the attention of one head, token by token. The reader chooses the head from a board of all heads.
const { tokens, layers, heads, models } = JSON.parse(document.getElementById("attention-data").textContent);
const find = (id) => document.getElementById(id);
const T = tokens.length, perHead = T * (T + 1) / 2;  // numbers in the lower triangle, stored row after row
const roots = models.map((model) => Uint8Array.from(atob(model.roots), (letter) => letter.charCodeAt(0)));
const chosen = { model: models.length - 1, layer: layers - 1, head: 0, query: T - 1, key: null };

// A byte holds 255 sqrt(p), so that small probabilities keep some digits and stay visible.
const root = (layer, head, query, key) =>
  roots[chosen.model][(layer * heads + head) * perHead + query * (query + 1) / 2 + key];
const probability = (key) => (root(chosen.layer, chosen.head, chosen.query, key) / 255) ** 2;
const percent = (p) => (100 * p).toFixed(p < 0.0995 ? 1 : 0) + " %";

function paint(canvas, layer, head, marked) {
  canvas.width = canvas.height = T;
  const context = canvas.getContext("2d"), image = context.createImageData(T, T);
  const style = getComputedStyle(document.documentElement);
  const [tint, soft] = ["--tint", "--soft"].map((name) =>
    style.getPropertyValue(name).match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16)));
  for (let query = 0; query < T; query++)
    for (let key = 0; key < (query === marked ? T : query + 1); key++)  // a faint line extends the marked row
      image.data.set(key <= query ? [...tint, root(layer, head, query, key)] : [...soft, 60], 4 * (query * T + key));
  context.putImageData(image, 0, 0);
}

function paintBoard() {
  for (const canvas of find("board").querySelectorAll("canvas"))
    paint(canvas, +canvas.dataset.layer, +canvas.dataset.head, null);
}

function show() {
  paint(find("picture"), chosen.layer, chosen.head, chosen.query);
  for (const name of ["model", "layer", "head"]) if (find(name)) find(name).value = chosen[name];
  for (const button of find("board").querySelectorAll("button"))
    button.ariaPressed = +button.value === chosen.layer * heads + chosen.head;
  find("strip").querySelectorAll("button").forEach((button, key) => {
    const seen = key <= chosen.query;
    button.style.setProperty("--share", seen ? 60 * Math.sqrt(probability(key)) + "%" : "0%");
    button.title = seen ? percent(probability(key)) : "a later token";
    button.classList.toggle("later", !seen);
    button.ariaPressed = key === chosen.query;
  });
  const name = (token) => `“${tokens[token]}” (${token})`;
  const keys = chosen.key !== null && chosen.key <= chosen.query ? [chosen.key]
    : [...Array(chosen.query + 1).keys()].sort((a, b) => probability(b) - probability(a)).slice(0, 5);
  find("readout").textContent = `Layer ${chosen.layer}, head ${chosen.head}: ${name(chosen.query)} attends to `
    + keys.map((key) => `${name(key)} with ${percent(probability(key))}`).join(", ") + ".";
}

function choose(changes) {
  Object.assign(chosen, { key: null }, changes);
  show();
}

for (const name of ["layer", "head"]) find(name).onchange = (event) => choose({ [name]: +event.target.value });
if (find("model")) find("model").onchange = (event) => { choose({ model: +event.target.value }); paintBoard(); };
find("board").onclick = (event) => {
  const button = event.target.closest("button");
  if (button) choose({ layer: Math.floor(button.value / heads), head: button.value % heads });
};
find("strip").onclick = (event) => {
  const button = event.target.closest("button");
  if (button) choose({ query: +button.value });
};
find("picture").onpointermove = find("picture").onpointerdown = (event) => {
  const box = event.target.getBoundingClientRect();
  const cell = (at, length) => Math.min(T - 1, Math.max(0, Math.floor(T * at / length)));
  choose({ query: cell(event.clientY - box.top, box.height), key: cell(event.clientX - box.left, box.width) });
};
find("picture").onkeydown = (event) => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const within = (at, last) => Math.min(last, Math.max(0, at));
  const query = within(chosen.query + step[0], T - 1);
  choose({ query, key: within((chosen.key ?? chosen.query) + step[1], query) });
};
matchMedia("(prefers-color-scheme: dark)").onchange = () => { paintBoard(); show(); };
paintBoard();
show();
