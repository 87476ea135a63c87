// What the page shows: the library's record of the first question, and of any other what network.js
// computes.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const {model, history, items} = data;
const {H, layers, heads, inner, causal, paper, tied} = network.settings(model);
const D = H / heads;
const weights = data.weights && network.tensors(data.weights);
const record = network.recorded(data.record);
const first = data.question;

const $ = id => document.getElementById(id);
const format = (x, digits = 4) => {
  if (!Number.isFinite(x)) return String(x);
  const size = Math.abs(x);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? x.toExponential(2) : x.toFixed(digits);
};
const percent = p => (100 * p).toFixed(2) + " %";
const title = i => items[history[i]];

// element("td", {class: "number"}, "text" or elements ...)
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}
const row = (name, ...cells) => element("tr", {}, ...cells.map(cell => element(name,
  {class: typeof cell === "number" ? "number" : false, ...(name === "th" ? {scope: "col"} : {})},
  typeof cell === "number" ? (Number.isInteger(cell) ? String(cell) : format(cell, 6)) : cell)));
const numberCell = x => element("td", {class: "number"}, format(x));

// ---- The state ---------------------------------------------------------------------------------

// question: what is asked; run: {row, all}; gradients; answer.
const state = {question: structuredClone(first), isFirst: true};

function recompute() {
  const {question} = state;
  state.isFirst = JSON.stringify(question) === JSON.stringify(first);
  if (state.isFirst) {
    const run = {row: network.rowOf(model, history, question), all: record.all};
    Object.assign(state, {run, gradients: record.gradients});
  } else {
    const run = network.forward(model, weights, history, question);
    const back = network.backward(model, weights, question, run, history[question.place]);
    Object.assign(state, {run, gradients: back.gradients});
  }
  state.answer = network.answer(state.run, history, question);
}

// ---- The question ------------------------------------------------------------------------------

function showAnswers(list, top, target) {
  list.replaceChildren(...top.map(([item, p]) => element("li",
    {class: item === target ? "right" : false},
    `${items[item]} `, element("span", {class: "number"}, percent(p)),
    item === target ? " (the hidden one)" : "",
    element("span", {class: "bar", style: `width:${Math.max(100 * p, 0.2)}%`}))));
}

function showQuestion() {
  const {question, answer, run} = state, target = history[question.place];
  const way = causal
    ? "sees what the user watched before it, and nothing after (causal, as SASRec does)"
    : "sees what stands on both sides of it (the Cloze task, as BERT4Rec does)";
  const more = data.items_of_user > history.length
    ? ` (their newest ${history.length} of ${data.items_of_user} are shown)` : "";
  $("question-text").textContent =
    `The user ${data.user} watched ${data.items_of_user} titles${more}. Number ` +
    `${question.place + 1} of those below is hidden, and the model, which ${way}, must name it ` +
    `among ${items.length} titles. It is asked ` + (causal ? "at the newest title that it sees: " +
    "that is the asked place." : "where the hidden title stood, at a [MASK]: that is the asked place.") +
    (weights ? " Hide another, leave some out, and see what changes." : "");
  showAnswers($("after"), answer.top, target);
  $("verdict").textContent =
    `The hidden title is “${items[target]}”: rank ${answer.rank} of those not shown, probability ` +
    `${percent(Math.exp(-answer.loss))}, loss ${format(answer.loss)}.`;
  $("origin").textContent = state.isFirst
    ? "These numbers are the library's own run." : "These numbers were computed here, in your browser.";
  const shown = new Set(run.row.from);
  [...$("history").tBodies[0].rows].forEach((line, i) => {
    line.className = i === question.place ? "asked" : question.dropped.includes(i) ? "out"
      : shown.has(i) ? "" : "unseen";
    line.title = line.className === "unseen" ? "comes later: a causal model does not see it" : "";
  });
}

function buildEdits() {
  const change = edit => { edit(state.question); update(); };
  $("history").tBodies[0].replaceChildren(...history.map((_, i) => element("tr", {},
    element("td", {class: "number"}, String(i + 1)), element("td", {}, title(i)),
    element("td", {}, element("input", {type: "radio", name: "place", value: i,
      "aria-label": `hide ${title(i)}`, disabled: !weights, onchange: () => change(q => {
        q.place = i;
        q.dropped = q.dropped.filter(other => other !== i);
      })})),
    element("td", {}, element("input", {type: "checkbox", "aria-label": `leave out ${title(i)}`,
      disabled: !weights, onchange: event => change(q => {
        q.dropped = q.dropped.filter(other => other !== i);
        if (event.target.checked && i !== q.place) q.dropped.push(i);
        q.dropped.sort((a, b) => a - b);
      })})))));
  for (let layer = 0; layer < layers; ++layer) {
    for (let head = 0; head < heads; ++head) {
      $("heads").append(element("label", {}, element("input", {type: "checkbox", checked: true,
        disabled: !weights, "data-head": `${layer},${head}`, onchange: event => change(q => {
          q.off = q.off.filter(([l, h]) => l !== layer || h !== head);
          if (!event.target.checked) q.off.push([layer, head]);
        })}), ` layer ${layer + 1}, head ${head + 1}`), " ");
    }
  }
  $("temperature").disabled = !weights;
  $("temperature").addEventListener("input", event =>
    change(q => { q.temperature = Number(event.target.value); }));
  $("edits").addEventListener("reset", event => {
    event.preventDefault();
    state.question = structuredClone(first);
    update();
  });
  $("edits").addEventListener("submit", event => event.preventDefault());
}

function showEdits() {
  const {question} = state;
  [...$("history").tBodies[0].rows].forEach((line, i) => {
    const [place, out] = line.querySelectorAll("input");
    place.checked = i === question.place;
    out.checked = question.dropped.includes(i);
    out.disabled = !weights || i === question.place;
  });
  for (const box of $("heads").querySelectorAll("input")) {
    box.checked = !question.off.some(head => head.join() === box.dataset.head);
  }
  $("temperature").value = question.temperature;
  $("temperature-now").textContent = question.temperature;
}

// ---- Training ----------------------------------------------------------------------------------

function buildStages() {
  const target = history[first.place];
  showAnswers($("before"), data.stages[0].top, target);
  $("chance-loss").textContent = `log ${items.length} = ${format(Math.log(items.length), 3)}`;
  $("stages").tBodies[0].replaceChildren(...data.stages.map(stage => element("tr", {},
    element("td", {}, stage.name), numberCell(stage.loss),
    element("td", {class: "number"}, percent(Math.exp(-stage.loss))),
    element("td", {class: "number"}, String(stage.rank)),
    element("td", {}, stage.top.slice(0, 3).map(([item]) => items[item]).join(" · ")))));
}

// ---- The map -----------------------------------------------------------------------------------

const lineOf = name => `${name}, line ${data.code[name].line}`;

// Of each matrix what it is, its formula and the function of the header that makes it; of its
// gradient likewise. Between them the operations.
function rungs() {
  const matrix = (name, by, formula, backBy, back, more = {}) =>
    ({name, by: {forward: by, backward: backBy}, formula, back, ...more});
  const around = "linear_backward";
  const list = [
    {operation: "rows of two tables are added"},
    matrix("embedded", "embedding_forward", "eₜ = item[tokenₜ] + position[t]", "norm_backward",
           "goes to the rows of both tables: a token that stands twice adds both (embedding_backward)"),
    {operation: "LayerNorm"},
    matrix("x0", "norm_forward", "x = gain (e - mean) / deviation + bias", around,
           "the sum of what comes through q, k and v of layer 1 and around them"),
  ];
  for (let l = 0; l < layers; ++l) {
    const is = name => `layers.${l}.${name}`, last = l === layers - 1;
    list.push(
      {layer: `Layer ${l + 1}` + (last
        ? ": nobody reads more than the asked place of it, so only that is a query and goes on; keys and values are still of all" : "")},
      {operation: "linear from x, to queries"},
      matrix(is("q"), "linear_forward", "q = x W_qᵀ + b_q", "attention_backward", "dq = dS k / √D" +
             (l === 0 && causal ? ". The first title sees itself alone: its P is 1 whatever the score, so its row is 0" : ""),
             {begins: is("sum1")}),
      {operation: "linear from x, to keys and values"},
      matrix(is("kv"), "linear_forward", "(k, v) = x W_kvᵀ + b_kv: keys left, values right",
             "attention_backward", "dk = dSᵀ q / √D,  dv = Pᵀ do: sums over all queries that see the key"),
      {operation: "softmax of queries times keys"},
      matrix(is("weights"), "attention_forward",
             "P = softmax(q kᵀ / √D), one head under the other", "", "",
             {noGradient: "dP: used at once in attention_backward, not kept"}),
      {operation: "P times the values"},
      matrix(is("context"), "attention_forward", "o = P v, heads side by side", "linear_backward",
             "do = d(sum) W_out"),
      {operation: "linear, + x around attention"},
      matrix(is("sum1"), "residual_norm_forward", "x + o W_outᵀ + b_out", "residual_norm_backward",
             "LayerNorm's backward. It goes on twice: through W_out into attention, and around it to x" +
             (last ? " at the asked place" : "") + ", where the two and those of keys and values are added"),
      {operation: "LayerNorm"},
      matrix(is("a"), "normalize", "a = LayerNorm(x + attention)", around,
             "the sum of what comes through the feed-forward and around it", {begins: is("sum2")}),
      {operation: "linear, wider"},
      matrix(is("u"), "linear_forward", "u = a W₁ᵀ + b₁", "activation_backward", "du = dh gelu′(u)"),
      {operation: "GELU"},
      matrix(is("h"), "activation_forward", "h = gelu(u) = u Φ(u)", "linear_backward",
             "dh = d(sum) W₂"),
      {operation: "linear, + a around it"},
      matrix(is("sum2"), "residual_norm_forward", "a + h W₂ᵀ + b₂", "residual_norm_backward",
             "LayerNorm's backward. It goes on twice: into the feed-forward, and around it to a, where both are added"),
      {operation: "LayerNorm"},
      matrix(is("x"), "normalize", "x = LayerNorm(a + feed-forward)", around, last
        ? "dx = ds W: the scores' gradient through the vectors of the items"
        : "the sum of what comes through the next layer and around it"));
  }
  list.push(
    {layer: paper ? "Head: dense, GELU, LayerNorm, then the item table" : "Head"},
    {operation: `compared with the ${tied ? "item" : "output"} table`},
    matrix("scores", "linear_forward", "s = x Wᵀ + b, one score an item", "softmax_loss",
           "ds = softmax(s) - 1 at the hidden item: it is pulled up, all others are pushed down"),
    {operation: "softmax and cross-entropy"});
  return list;
}

function buildLadder() {
  const ladder = $("ladder"), rowsOf = {};
  let line = 1;
  const place = made => {
    made.style.gridRow = line;
    ladder.append(made);
  };
  place(element("div", {class: "operation", id: "map-top"}));
  ++line;
  const list = rungs();
  for (const rung of list) {
    if (rung.layer) {
      place(element("div", {class: "layer"}, rung.layer));
    } else if (rung.operation) {
      place(element("div", {class: "operation"}, element("span", {class: "down"}, "↓"),
                    rung.operation, element("span", {class: "up"}, "↑")));
    } else {
      rowsOf[rung.name] = line;
      for (const way of ["forward", "backward"]) {
        if (way === "backward" && rung.noGradient) {
          place(element("small", {class: "no-gradient"}, rung.noGradient));
          continue;
        }
        place(element("button", {type: "button", class: way, "aria-pressed": "false",
          "data-name": rung.name, onclick: () => {
            inspect(rung, way);
            if (matchMedia("(max-width: 48rem)").matches) $("inspector").scrollIntoView();
          }}));
      }
    }
    ++line;
  }
  place(element("div", {class: "operation", id: "map-bottom"}));
  // Brackets around attention and around the feed-forward: from what goes in to the sum.
  for (const rung of list.filter(each => each.begins)) {
    const from = rung.name.endsWith(".a") ? rowsOf[rung.name] : rowsOf[rung.name] - 1;  // from x
    for (const side of ["around", "around back"]) {
      const bracket = element("div", {class: side, "aria-hidden": "true"});
      bracket.style.gridRow = `${from} / ${rowsOf[rung.begins] + 1}`;
      ladder.append(bracket);
    }
  }
  return list;
}

const ladderRungs = [];
let inspected = null;

function showLadder() {
  const {run, gradients, answer} = state, N = run.row.tokens.length;
  $("map-top").textContent = `tokens [${N}]: ${N} rows of the item table`;
  $("map-bottom").textContent = `loss ${format(answer.loss)}` +
    (state.question.temperature === 1 ? "" : ` (at temperature ${state.question.temperature})`) +
    "; its gradient by itself is 1, and goes up from here";
  for (const button of $("ladder").querySelectorAll("button")) {
    const {name} = button.dataset, short = name.replace(/^layers\.\d+\./, "");
    const back = button.classList.contains("backward");
    const matrix = back ? gradients[name] : run.all[name];
    button.textContent = `${back ? "d " : ""}${short} [${matrix.rows},${matrix.cols}]`;
    const where = name.startsWith("layers") ? ` of layer ${Number(name.split(".")[1]) + 1}` : "";
    button.setAttribute("aria-label",
      `${back ? "gradient by " : ""}${short}${where}, ${matrix.rows} by ${matrix.cols}`);
  }
  if (inspected) inspect(inspected.rung, inspected.way);
}

function rowLabel(name, i, matrix) {
  if (name === "scores") return "scores";
  const {row: shown} = state.run, last = name.startsWith(`layers.${layers - 1}.`);
  const queries = name.endsWith(".weights") ? matrix.rows / heads : matrix.rows;
  const at = last && !name.endsWith(".kv") ? shown.asked : i % queries;
  const label = shown.from[at] < 0 ? "[MASK]" : title(shown.from[at]);
  return name.endsWith(".weights") ? `head ${Math.floor(i / queries) + 1}: ${label}` : label;
}

const colour = (value, largest) => {
  const share = largest === 0 ? 0 : Math.abs(value) / largest;
  return `rgba(var(${value < 0 ? "--low" : "--high"}), ${share.toFixed(3)})`;
};

// A canvas of the matrix, one cell a number, over which the arrow keys and the pointer move.
function picture(matrix, label) {
  const {rows, cols, data: numbers} = matrix, style = getComputedStyle(document.documentElement);
  const size = cols > 400 ? 1 : cols > 96 ? 3 : cols > 24 ? 6 : 14;
  const tall = Math.max(size, rows < 4 ? 18 : 10);
  const canvas = element("canvas", {width: cols * size, height: rows * tall, tabindex: 0, role: "img"});
  const largest = numbers.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  const pen = canvas.getContext("2d");
  const tint = {true: style.getPropertyValue("--low"), false: style.getPropertyValue("--high")};
  for (let i = 0; i < rows; ++i) {
    for (let j = 0; j < cols; ++j) {
      const value = numbers[i * cols + j];
      pen.fillStyle = `rgba(${tint[value < 0]}, ${largest ? Math.abs(value) / largest : 0})`;
      pen.fillRect(j * size, i * tall, size, tall);
    }
  }
  canvas.setAttribute("aria-label", `${label}: ${rows} by ${cols} numbers, the largest ` +
    `${format(largest)}; arrow keys read single ones`);
  const says = element("p", {class: "note", "aria-live": "polite"},
    `green: positive, purple: negative, strongest at ${format(largest)}. Point at a cell, or use the arrow keys.`);
  let at = [0, 0];
  const tell = (i, j) => {
    at = [Math.min(Math.max(i, 0), rows - 1), Math.min(Math.max(j, 0), cols - 1)];
    says.textContent = `[${at[0]}, ${at[1]}] = ${format(numbers[at[0] * cols + at[1]], 6)}`;
  };
  canvas.addEventListener("keydown", event => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!move) return;
    event.preventDefault();
    tell(at[0] + move[0], at[1] + move[1]);
  });
  canvas.addEventListener("mousemove", event => {
    const box = canvas.getBoundingClientRect();
    tell(Math.floor((event.clientY - box.top) / box.height * rows),
         Math.floor((event.clientX - box.left) / box.width * cols));
  });
  return [canvas, says];
}

// Of scores, or their gradient: the hidden title and those with the largest numbers.
function scoresTable(numbers) {
  const target = history[state.question.place];
  const largest = [...numbers.keys()].sort((a, b) => Math.abs(numbers[b]) - Math.abs(numbers[a]));
  return element("table", {}, element("caption", {}, `the largest of ${items.length}, and the hidden title`),
    ...[...new Set([...largest.slice(0, 8), target])].map(item => element("tr",
      {class: item === target ? "asked" : false},
      element("th", {scope: "row"}, items[item] + (item === target ? " (hidden)" : "")),
      numberCell(numbers[item]))));
}

function inspect(rung, way) {
  inspected = {rung, way};
  const back = way === "backward";
  const matrix = (back ? state.gradients : state.run.all)[rung.name];
  for (const button of $("ladder").querySelectorAll("button")) {
    button.setAttribute("aria-pressed",
      String(button.dataset.name === rung.name && button.classList.contains(way)));
  }
  const name = rung.by[way], label = `${back ? "gradient by " : ""}${rung.name}`;
  const {rows, cols, data: numbers} = matrix, columns = Math.min(cols, 5);
  const mean = numbers.reduce((sum, x) => sum + x, 0) / numbers.length;
  const size = Math.sqrt(numbers.reduce((sum, x) => sum + x * x, 0));
  const table = rung.name === "scores" ? scoresTable(numbers) : element("table", {},
    element("caption", {}, `the first ${columns} of ${cols} numbers of each row`),
    ...Array.from({length: rows}, (_, i) => {
      const label = rowLabel(rung.name, i, matrix);
      return element("tr", {}, element("th", {scope: "row", class: "short", title: label}, label),
        ...Array.from({length: columns}, (_, j) => numberCell(numbers[i * cols + j])));
    }));
  $("inspector").replaceChildren(
    element("h3", {}, `${back ? "d " : ""}${rung.name} [${rows},${cols}]`),
    element("p", {class: back ? "backward-key" : "forward-key"}, back ? rung.back : rung.formula),
    ...picture(matrix, label),
    element("p", {class: "note"}, `mean ${format(mean)}, length (root of the sum of squares) ${format(size)}; ` +
      (state.isFirst ? "from the library's run" : "computed here")),
    element("div", {class: "scroll"}, table),
    element("details", {}, element("summary", {}, `bert4rec.hpp: ${lineOf(name)}`),
      element("pre", {}, data.code[name].text)));
}

// ---- One attention head ------------------------------------------------------------------------

function head() {
  const layer = Number($("head-layer").value), h = Number($("head-head").value);
  const {run} = state, last = layer === layers - 1;
  const q = run.all[`layers.${layer}.q`], kv = run.all[`layers.${layer}.kv`];
  const weightsOf = run.all[`layers.${layer}.weights`], Q = q.rows, N = kv.rows;
  const places = last ? [run.row.asked] : run.row.tokens.map((_, t) => t);
  return {layer, h, q, kv, Q, N, places,
          P: i => weightsOf.data.subarray((h * Q + i) * N, (h * Q + i + 1) * N)};
}

const labelOf = t => state.run.row.from[t] < 0 ? "[MASK]" : title(state.run.row.from[t]);
const numberOf = t => state.run.row.from[t] < 0 ? "?" : String(state.run.row.from[t] + 1);
const numbered = t => `${numberOf(t)}: ${labelOf(t)}`;

// What this head does, in words that follow from its numbers.
function sentences({P, Q, N, places}, i) {
  const p = P(i), at = places[i], seen = causal ? at + 1 : N;
  const best = p.indexOf(Math.max(...p)), distance = at - best;
  const where = distance === 0 ? "itself" : distance > 0
    ? `what came ${distance === 1 ? "just" : distance + " places"} before` : `what comes ${-distance} after`;
  const entropy = -p.reduce((sum, x) => sum + (x > 0 ? x * Math.log(x) : 0), 0);
  const spread = Math.exp(entropy);
  let own = 0, before = 0;
  for (let j = 0; j < Q; ++j) {
    own += P(j)[places[j]] / Q;
    if (places[j] > 0) before += P(j)[places[j] - 1] / Q;
  }
  const all = Q > 1
    ? ` Over all queries this head gives ${percent(own)} to the query's own place and ${percent(before)} to the one before it.` : "";
  return `The query “${labelOf(at)}” looks most at “${labelOf(best)}”, ${where}: ` +
    `${percent(p[best])}, where looking everywhere alike would give ${percent(1 / seen)}. It spreads ` +
    `like ${format(spread, 1)} of ${seen} places.${all}`;
}

function showHead() {
  const chosen = head(), {h, q, kv, Q, N, places, P, layer} = chosen;
  const select = $("head-query"), kept = Number(select.value);
  select.replaceChildren(...places.map((t, i) => element("option", {value: i}, numbered(t))));
  const i = select.dataset.begun && kept < Q ? kept : places.indexOf(state.run.row.asked);
  select.dataset.begun = "yes";
  select.value = i;
  $("head-says").textContent = sentences(chosen, i);
  const grid = $("head-grid"), caption = grid.caption;
  grid.replaceChildren(caption, element("tr", {}, element("td", {}), ...Array.from({length: N},
    (_, j) => element("th", {scope: "col", title: labelOf(j)}, numberOf(j)))));
  for (let query = 0; query < Q; ++query) {
    grid.append(element("tr", {class: query === i ? "chosen" : false},
      element("th", {scope: "row", title: labelOf(places[query])}, numbered(places[query])),
      ...Array.from(P(query), (p, j) => element("td", {
        style: `background:${colour(p, 1)}`, "aria-label": percent(p),
        title: `${labelOf(places[query])} → ${labelOf(j)}: ${percent(p)}`}))));
  }
  const off = state.question.off.some(([l, head]) => l === layer && head === h);
  $("head-formula").textContent = `S = q·k / √${D}, P = softmax of it over the places that are seen, and the ` +
    `result is the sum of P v (here the first three of ${D} numbers of v).` + (off ? " This head is off: whatever it finds, zeros go on instead." : "") +
    (state.isFirst ? "" : " Computed here, in your browser.");
  const cells = $("head-cells"), seen = causal ? places[i] + 1 : N, sum = [0, 0, 0];
  cells.replaceChildren(element("thead", {}, row("th", "key", "q·k / √D", "P", "v₁", "v₂", "v₃")));
  for (let j = 0; j < seen; ++j) {
    let s = 0;
    for (let d = 0; d < D; ++d) s += q.data[i * H + h * D + d] * kv.data[j * 2 * H + h * D + d];
    const v = [0, 1, 2].map(d => d < D ? kv.data[j * 2 * H + H + h * D + d] : 0);
    v.forEach((x, d) => { sum[d] += P(i)[j] * x; });
    cells.append(element("tr", {}, element("th", {scope: "row", class: "short", title: labelOf(j)}, numbered(j)),
      numberCell(s / Math.sqrt(D)), numberCell(P(i)[j]), ...v.map(numberCell)));
  }
  cells.append(element("tr", {class: "asked"}, element("td", {}, "sum of P v"), element("td", {}),
    element("td", {}), ...sum.map(numberCell)));
}

function buildHead() {
  const options = n => Array.from({length: n}, (_, i) => element("option", {value: i}, String(i + 1)));
  $("head-layer").append(...options(layers));
  $("head-head").append(...options(heads));
  for (const id of ["head-layer", "head-head", "head-query"]) $(id).addEventListener("change", showHead);
}

// ---- Backward ----------------------------------------------------------------------------------

const cards = [
  {check: "softmax_loss", name: "Softmax with cross-entropy", of: "of the scores", code: ["softmax_loss"],
   formula: ["L = log Σⱼ exp sⱼ - s_target", "∂L/∂sⱼ = exp sⱼ / Σₖ exp sₖ - [j = target]",
             "= pⱼ - [j = target]: the sum over j is 0, so whatever the target is given is taken from the others"]},
  {check: "linear", name: "Linear", of: "of u = a W₁ᵀ + b₁ of layer 1", code: ["linear_backward"],
   formula: ["y = x Wᵀ + b: y_o = Σᵢ xᵢ W_oᵢ + b_o, for each token",
             "xᵢ acts through every output: dxᵢ = Σₒ dyₒ W_oᵢ, that is dx = dy W",
             "W and b are shared by all tokens: dW = Σₜ dyₜᵀ xₜ,  db = Σₜ dyₜ",
             "Most of a network is this. A step of training then moves every parameter a little against its gradient (AdamW, chapter 15 of the header)"]},
  {check: "normalize", name: "LayerNorm", of: `of sum2 of layer ${layers}, at the asked place`, code: ["normalize_backward"],
   formula: ["z = (x - mean) r with r = 1 / √(variance + ε),  y = gain z + bias",
             "e = gain dy is the gradient by z; each xᵢ acts on all of z: ∂zⱼ/∂xᵢ = r ([i = j] - 1/H - zᵢ zⱼ / H), by the mean and by r",
             "dx = r (e - mean(e) - z mean(e z)): what would shift x, or stretch it about its mean, is taken away, since it changes no y",
             "dgain = Σₜ dy z,  dbias = Σₜ dy"]},
  {check: "gelu", name: "GELU", of: "of layer 1, at its last token", code: ["gelu_backward"],
   formula: ["h = u Φ(u)", "dh/du = Φ(u) + u φ(u), with φ the density of the normal distribution",
             "du = dh (Φ(u) + u φ(u)): each number by itself"]},
  {check: "attention", name: "Attention", of: "of layer 1", code: ["attention_backward", "softmax_backward"],
   formula: ["S = q kᵀ / √D,  P = softmax(S),  o = P v", "dv = Pᵀ do,  dP = do vᵀ",
             "dSᵢⱼ = Pᵢⱼ (dPᵢⱼ - Σₖ Pᵢₖ dPᵢₖ): softmax's own backward, row by row",
             "dq = dS k / √D,  dk = dSᵀ q / √D (in the code d_T is dS / √D already: softmax_backward puts the scale in)"]},
];

const worstOf = check => `largest difference from central differences (step 1e-5): ${check.worst.toExponential(1)}`;

function buildCards() {
  $("cards").append(...cards.map(({check: id, name, of, code, formula}) => {
    const check = data.checks[id];
    const table = element("table", {}, element("thead", {}, row("th", ...check.columns)),
      element("tbody", {}, ...check.rows.map(cells => {
        const shown = [...cells];
        if (id === "softmax_loss") shown[0] = items[shown[0]] + (shown[3] < 0 ? " (target)" : "");
        return row("td", ...shown);
      })));
    return element("section", {class: "card", "aria-label": name},
      element("h3", {}, name, " ", element("small", {}, of)),
      element("div", {class: "columns"},
        element("div", {}, element("h4", {}, "Formula"), ...formula.map(text => element("p", {}, text))),
        element("div", {}, element("h4", {}, "Numbers"), element("div", {class: "scroll"}, table),
          element("p", {class: "proof"}, `${worstOf(check)} of the largest gradient, over 400 to 800 numbers or all there are`)),
        element("div", {}, element("h4", {}, "Code"), ...code.flatMap(each => [
          element("p", {class: "note"}, lineOf(each)), element("pre", {}, data.code[each].text)]))));
  }));
  const {tensors} = data.checks;
  $("tensors-worst").textContent = `${worstOf(tensors)} of that element.`;
  $("tensors").append(element("thead", {}, row("th", ...tensors.columns)),
    element("tbody", {}, ...tensors.rows.map(([name, shape, length, at, gradient, numeric]) => {
      const width = shape.length > 1 ? shape[1] : 1;
      const place = shape.length > 1 ? `[${Math.floor(at / width)}, ${at % width}]` : `[${at}]`;
      return row("td", name, `[${shape}]`, length, place, gradient, numeric);
    })));
}

// ---- Traps -------------------------------------------------------------------------------------

function maskPicture(name, says, on) {
  const table = element("table", {class: "mask", "aria-label": name});
  for (let i = 0; i < 5; ++i) {
    table.append(element("tr", {}, ...Array.from({length: 5}, (_, j) =>
      element("td", {class: on(i, j) ? "on" : false}))));
  }
  return element("figure", {}, table, element("figcaption", {}, element("b", {}, name), ": ", says));
}

// The chance that at most `most` of `better` items are among `drawn` of `n`.
function atMost(most, better, drawn, n) {
  let log = 0, total = 0;  // of the chance that none is among them
  for (let i = 0; i < drawn; ++i) log += Math.log(n - better - i) - Math.log(n - i);
  if (better + drawn > n) return NaN;
  let chance = Math.exp(log);
  for (let k = 0; k <= Math.min(most, better, drawn); ++k) {
    total += chance;
    chance *= (better - k) * (drawn - k) / ((k + 1) * (n - better - drawn + k + 1));
  }
  return Math.min(total, 1);
}

function buildTraps() {
  $("masks").append(
    maskPicture("Padding mask", "a row of three in a batch that is five wide", (i, j) => i < 3 && j < 3),
    maskPicture("Causal mask", "nobody looks to the right", (i, j) => j <= i),
    maskPicture("Cloze", "all look at all; what is hidden is [MASK] instead", () => true));
}

function showTraps() {
  const {question, run, answer} = state, target = history[question.place];
  const s = run.all.scores.data.map(score => score / question.temperature);
  const K = Math.min(20, s.length - 1), full = answer.loss;
  // Drawn with the numbers of a small generator, a thousand times.
  let seed = 1, plain = 0, corrected = 0;
  const next = n => (seed = seed * 48271 % 2147483647) % n;
  for (let draw = 0; draw < 1000; ++draw) {
    const drawn = Array.from({length: K}, () => next(s.length)).filter(item => item !== target);
    const shift = Math.log(K / s.length);
    plain += network.softmax([s[target], ...drawn.map(j => s[j])]).logSum - s[target];
    corrected += network.softmax([s[target], ...drawn.map(j => s[j] - shift)]).logSum - s[target];
  }
  $("sampled-softmax").textContent =
    `Over all ${s.length} titles the loss of the question above is ${format(full)}. Against ${K} titles drawn evenly, a ` +
    `thousand times, its mean is ${format(plain / 1000)}: an easier question, and another loss. Sampled softmax (section 12 of the ` +
    `header) takes log(K q) from the score of what is drawn, q = 1 / ${s.length} being its chance in one draw, so that the sum of ` +
    `exp is right on average. The mean of its logarithm, ${format(corrected / 1000)}, is still below the full loss: a logarithm of ` +
    `means is more than a mean of logarithms, and much more where one title holds much of the sum (here ` +
    `${percent(Math.max(...answer.p))}) and is seldom drawn. Many negatives bring it near.`;
  const n = s.length - run.row.from.filter(i => i >= 0).length, drawn = Math.min(100, n - answer.rank);
  $("sampled-ranking").textContent =
    `The hidden title has rank ${answer.rank} of the ${n} that are not shown` +
    (answer.rank > 10 ? ", so HR@10 counts a miss. " : ", so HR@10 counts a hit. ") +
    `Against ${drawn} titles drawn evenly it would be among the first ten with a chance of ` +
    `${percent(atMost(9, answer.rank - 1, drawn, n - 1))}. Rank 50 of ${n} would be so in ` +
    `${percent(atMost(9, Math.min(49, n - 1 - drawn), drawn, n - 1))} of the draws. Figures of the two kinds must never stand in one column.`;
}

// ---- Exercises ---------------------------------------------------------------------------------

// What leaving out each title does to the hidden one, in a sentence.
function leaveOneOut() {
  const shown = network.rowOf(model, history, first).from.filter(i => i >= 0);
  const all = shown.map(i => {
    const question = {...first, dropped: [i]};
    return [i, Math.exp(-network.answer(network.forward(model, weights, history, question), history, question).loss)];
  }).sort((a, b) => a[1] - b[1]);
  const now = Math.exp(-network.answer({row: network.rowOf(model, history, first), all: record.all}, history, first).loss);
  const said = ([i, p]) => `without number ${i + 1}, “${title(i)}”, ${percent(p)}`;
  return `The hidden title has ${percent(now)}. ${[all[0], all[1], all[all.length - 1]].map(said).join("; ")}. ` +
    "(Titles behind the one that is left out move up a position.) recommend --explain does this for the first answer: " +
    "exact drops, where attention weights are a guess.";
}

function buildExercises() {
  const sum = record.gradients.scores.data.reduce((a, b) => a + b, 0);
  const dx = record.gradients[`layers.${layers - 1}.sum2`];
  const along = dx.data.reduce((a, b) => a + b, 0), size = Math.sqrt(dx.data.reduce((a, b) => a + b * b, 0));
  const untrained = data.stages[0], N = record.all.embedded.rows;
  const hot = at => network.answer({row: network.rowOf(model, history, first), all: record.all}, history,
                                   {...first, temperature: at});
  const [cold, one, warm] = [0.5, 1, 2].map(hot), target = history[first.place];
  const s = record.all.scores.data, p = one.p;
  const tasks = [
    ["Before any training, which loss do you expect? Compare with the table of Training.",
     `About log ${items.length} = ${format(Math.log(items.length), 3)}: all titles alike. It was ${format(untrained.loss, 3)}: ` +
     "random scores are not quite alike."],
    ["Add up the gradient of the scores over all titles (its mean stands in the map). Why must it be 0?",
     `The probabilities add up to 1, and 1 is subtracted at the target. Here: ${format(sum)}. Adding the same number to all scores changes no loss.`],
    ["Add up d sum2 of the last layer. Why is it (nearly) 0, and what other direction has it nothing of?",
     `LayerNorm takes off the mean, so a shift of all numbers changes nothing; the sum is ${format(along)} where the length is ${format(size)}. The other is the direction of z: stretching x about its mean changes nothing either (but for epsilon).`],
    [`The gradient by embedded has ${N} rows, the item table ${items.length + 3}. Which rows of which tables get a gradient in this step?`,
     `From the embedding, the rows of the ${N} tokens that were shown, and the first ${N} of ${model.config.max_length} positions. ` + (tied
       ? `But the item table is the output too (tied): there each of its ${items.length} items gets one.`
       : `The output table, another tensor here, gets one in each row of its ${items.length} items.`) +
     " PAD and UNK get none" + (causal ? ", nor does [MASK]." : ".")],
    ["Set the temperature to 2, then to 0.5. What happens to the rank, and to the loss?",
     `The rank stays: dividing all scores by one number keeps their order. The loss is ${format(cold.loss)}, ${format(one.loss)} and ` +
     `${format(warm.loss)} at 0.5, 1 and 2. Its slope at 1 is the target's score, ${format(s[target])}, less the mean of all scores by ` +
     `their probability, ${format(s.reduce((total, score, i) => total + score * p[i], 0))}: higher temperature helps what scores below that mean.`],
    ["Turn off every head of the first layer. Through what do the items still reach the last layer?",
     "Around attention: x plus the bias of W_out, and then the feed-forward. Each token knows itself and its position alone, and the last layer mixes them."],
    [causal ? "Hide the first title. What does the model see, and should one trust its answers?"
       : "Hide the first title, then the last. For which is the answer better, and why?",
     causal ? "Nothing but a [MASK] at the first position. In training that stands there only for users with a single title (add_causal_row), so its vector has hardly been trained: no."
       : "Both have one-sided context; what counts is how much stands near, and how much the model learnt at that position."],
  ];
  if (weights) tasks.push(["Which title, left out, costs the hidden one most? Guess from the attention, then try.", leaveOneOut()]);
  const parameters = data.checks.tensors.rows.reduce((n, [, shape]) => n + shape.reduce((a, b) => a * b, 1), 0);
  tasks.push([`The model has ${parameters.toLocaleString("en")} parameters. Count them (the shapes stand under “The whole network”).`,
    `Item table ${items.length + 3} × ${H}, positions ${model.config.max_length} × ${H}, one LayerNorm 2 × ${H}; each of ${layers} layers 4 × ${H}² + 2 × ${inner} × ${H} for matrices, ` +
    `and ${9 * H + inner} for biases and norms; ` + (paper ? `the head ${H}² + 3 × ${H}, and one bias for each of ${items.length + 3} rows.`
      : tied ? `one bias for each of ${items.length + 3} rows.` : `the output table ${items.length + 3} × ${H} and its bias.`)]);
  $("tasks").append(...tasks.map(([task, solution]) => element("li", {}, task,
    element("details", {}, element("summary", {}, "Answer"), element("p", {}, solution)))));
}

// ---- About -------------------------------------------------------------------------------------

function buildAbout() {
  const facts = [
    ["Made by", `bert4rec.hpp ${model.version}: ${model.command}`],
    ["Model", `${model.name}, checksum ${model.checksum}; ${layers} layers of ${heads} heads, H = ${H}, ` +
      `objective ${model.config.objective}, architecture ${model.config.architecture}`],
    ["Data", `${model.data}, user ${data.user}`],
    ["Loss", "softmax over all items, dropout off; whatever the model was trained with"],
    ["Line numbers", `those of bert4rec.hpp ${model.version}`],
  ];
  $("provenance").append(...facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
  if (!weights) {
    $("comparison").textContent = "This model is too large to be carried by a page of 2 MB: what is shown is the library's run, and nothing can be changed.";
    return;
  }
  const differences = network.compare(data), bound = 1e-4;
  const worst = Math.max(...Object.values(differences));
  $("comparison").dataset.differences = JSON.stringify(differences);
  $("comparison").textContent =
    `This page's own arithmetic against the library's, as you opened it: matrices within ${differences.matrices.toExponential(1)} of their largest number, ` +
    `gradients ${differences.gradients.toExponential(1)}, gradients of all tensors ${differences.tensors.toExponential(1)}; probabilities of ${data.edits.length} questions with random ` +
    `edits within ${differences.answers.toExponential(1)} (of the first five the gradients too). ` + (worst <= bound ? `All below ${bound}.` : `MORE than ${bound}: do not trust what you change here.`);
}

// ---- All together ------------------------------------------------------------------------------

function update() {
  recompute();
  showEdits();
  showQuestion();
  showLadder();
  showHead();
  showTraps();
}

buildEdits();
buildStages();
ladderRungs.push(...buildLadder());
buildHead();
buildCards();
buildTraps();
buildExercises();
update();
inspect(ladderRungs.find(rung => rung.name === "layers.0.q"), "backward");
buildAbout();
document.body.dataset.ready = "yes";
