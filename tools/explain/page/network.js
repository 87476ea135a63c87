// The network of bert4rec.hpp once more, for the browser: the same layers in the same order, forward
// and backward, in double. No part of the page or of the library calls the other; the page compares
// the two and says how far they are apart. Matrices are {rows, cols, data}, row-major.
"use strict";

const network = (() => {
  const matrix = (rows, cols) => ({rows, cols, data: new Float64Array(rows * cols)});
  const copy = x => ({rows: x.rows, cols: x.cols, data: x.data.slice()});
  const addTo = (y, x) => x.data.forEach((value, i) => { y.data[i] += value; });

  // ---- Layers ----------------------------------------------------------------------------------

  // y[N,O] = x[N,I] w[O,I]^T + b[O], with the rows of w from `first` on
  function linear(x, w, b, first, O) {
    const y = matrix(x.rows, O), I = x.cols;
    for (let t = 0; t < x.rows; ++t) {
      for (let o = 0; o < O; ++o) {
        let sum = b[first + o];
        for (let i = 0; i < I; ++i) sum += x.data[t * I + i] * w[(first + o) * I + i];
        y.data[t * O + o] = sum;
      }
    }
    return y;
  }

  // dw += dy^T x,  db += sum_t dy_t,  returns dx = dy w
  function linearBackward(x, w, dy, dw, db, first) {
    const dx = matrix(x.rows, x.cols), I = x.cols, O = dy.cols;
    for (let t = 0; t < x.rows; ++t) {
      for (let o = 0; o < O; ++o) {
        const d = dy.data[t * O + o];
        db[first + o] += d;
        for (let i = 0; i < I; ++i) {
          dw[(first + o) * I + i] += d * x.data[t * I + i];
          dx.data[t * I + i] += d * w[(first + o) * I + i];
        }
      }
    }
    return dx;
  }

  function statistics(x, t, epsilon) {
    const H = x.cols, row = x.data.subarray(t * H, (t + 1) * H);
    const mean = row.reduce((sum, value) => sum + value, 0) / H;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / H;
    return {row, mean, inverse: 1 / Math.sqrt(variance + epsilon)};
  }

  // y = gain (x - mean) / deviation + bias
  function norm(x, gain, bias, epsilon) {
    const y = matrix(x.rows, x.cols);
    for (let t = 0; t < x.rows; ++t) {
      const {row, mean, inverse} = statistics(x, t, epsilon);
      row.forEach((value, i) => {
        y.data[t * x.cols + i] = gain[i] * (value - mean) * inverse + bias[i];
      });
    }
    return y;
  }

  // With z = (x - mean) inverse, e = gain dy:  dx = inverse (e - mean(e) - z mean(e z))
  function normBackward(x, gain, epsilon, dy, dgain, dbias) {
    const H = x.cols, dx = matrix(x.rows, H);
    for (let t = 0; t < x.rows; ++t) {
      const {row, mean, inverse} = statistics(x, t, epsilon);
      let meanE = 0, meanEz = 0;
      row.forEach((value, i) => {
        const d = dy.data[t * H + i], z = (value - mean) * inverse;
        dgain[i] += d * z;
        dbias[i] += d;
        meanE += gain[i] * d / H;
        meanEz += gain[i] * d * z / H;
      });
      row.forEach((value, i) => {
        const z = (value - mean) * inverse;
        dx.data[t * H + i] = inverse * (gain[i] * dy.data[t * H + i] - meanE - z * meanEz);
      });
    }
    return dx;
  }

  // erf: its series for small x, a continued fraction of erfc for large ones.
  function erf(x) {
    const size = Math.abs(x);
    if (size < 2.5) {
      let term = size, sum = size;
      for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); ++n) {
        term *= -size * size / n;
        sum += term / (2 * n + 1);
      }
      return Math.sign(x) * 2 / Math.sqrt(Math.PI) * sum;
    }
    let fraction = 0;
    for (let n = 60; n > 0; --n) fraction = n / 2 / (size + fraction);
    return Math.sign(x) * (1 - Math.exp(-size * size) / Math.sqrt(Math.PI) / (size + fraction));
  }
  const cumulative = x => (1 + erf(x / Math.SQRT2)) / 2;
  const density = x => Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  const gelu = x => x * cumulative(x);
  const geluSlope = x => cumulative(x) + x * density(x);

  // p = softmax(s), and log sum_j exp s_j
  function softmax(s) {
    const largest = Math.max(...s), p = Float64Array.from(s, value => Math.exp(value - largest));
    const sum = p.reduce((total, value) => total + value, 0);
    return {p: p.map(value => value / sum), logSum: largest + Math.log(sum)};
  }

  // Heads that are `off` give zeros. Query i < Q is the token places[i]; if attention is causal it
  // sees the tokens up to its own. weights: [A Q, N], a head's queries one behind the other.
  function attention(q, kv, places, heads, causal, off) {
    const Q = q.rows, N = kv.rows, H = q.cols, D = H / heads;
    const weights = matrix(heads * Q, N), context = matrix(Q, H);
    for (let h = 0; h < heads; ++h) {
      for (let i = 0; i < Q; ++i) {
        const seen = causal ? places[i] + 1 : N, scores = new Float64Array(seen);
        for (let j = 0; j < seen; ++j) {
          for (let d = 0; d < D; ++d) {
            scores[j] += q.data[i * H + h * D + d] * kv.data[j * 2 * H + h * D + d];
          }
          scores[j] /= Math.sqrt(D);
        }
        const {p} = softmax(scores);
        weights.data.set(p, (h * Q + i) * N);
        if (off.has(h)) continue;
        for (let j = 0; j < seen; ++j) {
          for (let d = 0; d < D; ++d) {
            context.data[i * H + h * D + d] += p[j] * kv.data[j * 2 * H + H + h * D + d];
          }
        }
      }
    }
    return {weights, context};
  }

  // dP = do v^T,  dS = P (dP - sum P dP) / sqrt D,  dq = dS k,  dk = dS^T q,  dv = P^T do
  function attentionBackward(q, kv, weights, heads, off, dContext) {
    const Q = q.rows, N = kv.rows, H = q.cols, D = H / heads;
    const dq = matrix(Q, H), dkv = matrix(N, 2 * H);
    for (let h = 0; h < heads; ++h) {
      if (off.has(h)) continue;
      for (let i = 0; i < Q; ++i) {
        const p = weights.data.subarray((h * Q + i) * N, (h * Q + i + 1) * N);
        const dp = new Float64Array(N);
        for (let j = 0; j < N; ++j) {
          for (let d = 0; d < D; ++d) {
            const dOut = dContext.data[i * H + h * D + d];
            dp[j] += dOut * kv.data[j * 2 * H + H + h * D + d];
            dkv.data[j * 2 * H + H + h * D + d] += p[j] * dOut;
          }
        }
        const mean = p.reduce((sum, value, j) => sum + value * dp[j], 0);
        for (let j = 0; j < N; ++j) {
          const ds = p[j] * (dp[j] - mean) / Math.sqrt(D);
          for (let d = 0; d < D; ++d) {
            dq.data[i * H + h * D + d] += ds * kv.data[j * 2 * H + h * D + d];
            dkv.data[j * 2 * H + h * D + d] += ds * q.data[i * H + h * D + d];
          }
        }
      }
    }
    return {dq, dkv};
  }

  // ---- The whole -------------------------------------------------------------------------------

  // What the model is shown: {tokens, asked}, and which items of the history each token stands for
  // (-1: the [MASK]).
  function rowOf(model, history, question) {
    const causal = model.config.objective === "causal", maskToken = 1;
    const row = {tokens: [], from: [], asked: 0};
    history.forEach((item, i) => {
      if (question.dropped.includes(i) || (causal && i >= question.place)) return;
      if (i === question.place) row.asked = row.tokens.length;
      row.tokens.push(i === question.place ? maskToken : item + model.first_row);
      row.from.push(i === question.place ? -1 : i);
    });
    if (causal) {
      if (row.tokens.length === 0) row.tokens.push(maskToken), row.from.push(-1);
      row.asked = row.tokens.length - 1;
    }
    return row;
  }

  const settings = model => {
    const c = model.config;
    return {H: c.hidden_size, layers: c.num_layers, heads: c.num_heads,
            inner: c.inner_size || 4 * c.hidden_size, epsilon: c.norm_epsilon ?? 1e-5,
            causal: c.objective === "causal", paper: c.architecture === "paper",
            tied: c.architecture !== "torch"};
  };
  const prefixOf = layer => `encoder.layers.${layer}.`;
  const rowsAt = (x, places) => {
    const y = matrix(places.length, x.cols);
    places.forEach((t, i) => y.data.set(x.data.subarray(t * x.cols, (t + 1) * x.cols), i * x.cols));
    return y;
  };
  const offIn = (question, layer) =>
    new Set(question.off.filter(([at]) => at === layer).map(([, head]) => head));

  // All matrices on the way from tokens to scores, by the names of the header. `w`: tensors by name.
  function forward(model, w, history, question) {
    const {H, layers, heads, inner, epsilon, causal, paper, tied} = settings(model);
    const row = rowOf(model, history, question), N = row.tokens.length, all = {};
    all.embedded = matrix(N, H);
    row.tokens.forEach((token, t) => {
      for (let i = 0; i < H; ++i) {
        all.embedded.data[t * H + i] = w["item_embedding.weight"][token * H + i] +
                                       w["position_embedding.weight"][t * H + i];
      }
    });
    let x = norm(all.embedded, w["embedding_norm.weight"], w["embedding_norm.bias"], epsilon);
    all.x0 = x;
    for (let l = 0; l < layers; ++l) {
      const at = name => w[prefixOf(l) + name], keep = (name, y) => all[`layers.${l}.${name}`] = y;
      // Nobody reads anything but the asked place of the last layer, so only that goes on.
      const places = l === layers - 1 ? [row.asked] : row.tokens.map((_, t) => t);
      const queryX = rowsAt(x, places);
      const inWeight = at("self_attn.in_proj_weight"), inBias = at("self_attn.in_proj_bias");
      const q = keep("q", linear(queryX, inWeight, inBias, 0, H));
      const kv = keep("kv", linear(x, inWeight, inBias, H, 2 * H));
      const {weights, context} = attention(q, kv, places, heads, causal, offIn(question, l));
      keep("weights", weights), keep("context", context);
      const sum1 = keep("sum1", linear(context, at("self_attn.out_proj.weight"),
                                       at("self_attn.out_proj.bias"), 0, H));
      addTo(sum1, queryX);
      const a = keep("a", norm(sum1, at("norm1.weight"), at("norm1.bias"), epsilon));
      const u = keep("u", linear(a, at("linear1.weight"), at("linear1.bias"), 0, inner));
      const h = keep("h", {...u, data: u.data.map(gelu)});
      const sum2 = keep("sum2", linear(h, at("linear2.weight"), at("linear2.bias"), 0, H));
      addTo(sum2, a);
      x = keep("x", norm(sum2, at("norm2.weight"), at("norm2.bias"), epsilon));
    }
    if (paper) {
      all["head.dense"] = linear(x, w["head.dense.weight"], w["head.dense.bias"], 0, H);
      all["head.active"] = {...x, data: all["head.dense"].data.map(gelu)};
      x = norm(all["head.active"], w["head.norm.weight"], w["head.norm.bias"], epsilon);
    }
    all["head.vectors"] = x;
    const table = w[tied ? "item_embedding.weight" : "output.weight"];
    all.scores = linear(x, table, w["output.bias"], model.first_row, model.config.num_items);
    return {row, all};
  }

  // The mirror of forward(), line by line from the bottom: gradients by each matrix and by each
  // tensor of the loss of softmax at the target, scores being divided by the temperature T:
  // ds = (softmax(s / T) - [target]) / T.
  function backward(model, w, question, run, target) {
    const {H, layers, heads, epsilon, paper, tied} = settings(model), {row, all} = run;
    const g = Object.fromEntries(Object.entries(w).map(([k, v]) => [k, new Float64Array(v.length)]));
    const gradients = {};
    const T = question.temperature, {p} = softmax(all.scores.data.map(s => s / T));
    const dScores = {...all.scores, data: p.slice()};
    dScores.data[target] -= 1;
    dScores.data.forEach((d, i) => { dScores.data[i] = d / T; });
    gradients.scores = dScores;
    const tableName = tied ? "item_embedding.weight" : "output.weight";
    let d = linearBackward(all["head.vectors"], w[tableName], dScores, g[tableName],
                           g["output.bias"], model.first_row);
    if (paper) {
      d = normBackward(all["head.active"], w["head.norm.weight"], epsilon, d, g["head.norm.weight"],
                       g["head.norm.bias"]);
      all["head.dense"].data.forEach((u, i) => { d.data[i] *= geluSlope(u); });
      const x = all[`layers.${layers - 1}.x`];
      d = linearBackward(x, w["head.dense.weight"], d, g["head.dense.weight"],
                         g["head.dense.bias"], 0);
    }
    for (let l = layers - 1; l >= 0; --l) {
      const name = of => prefixOf(l) + of, s = of => all[`layers.${l}.${of}`];
      const keep = (of, y) => gradients[`layers.${l}.${of}`] = copy(y);
      const places = l === layers - 1 ? [row.asked] : row.tokens.map((_, t) => t);
      const x = l === 0 ? all.x0 : all[`layers.${l - 1}.x`];
      const through = (of, from, dy, first = 0) =>
        linearBackward(from, w[name(of + "weight")], dy, g[name(of + "weight")],
                       g[name(of + "bias")], first);
      keep("x", d);
      d = normBackward(s("sum2"), w[name("norm2.weight")], epsilon, d, g[name("norm2.weight")],
                       g[name("norm2.bias")]);
      keep("sum2", d);
      const du = keep("h", through("linear2.", s("h"), d));
      const slopes = {...du, data: du.data.map((dh, i) => dh * geluSlope(s("u").data[i]))};
      keep("u", slopes);
      addTo(d, through("linear1.", s("a"), slopes));
      keep("a", d);
      d = normBackward(s("sum1"), w[name("norm1.weight")], epsilon, d, g[name("norm1.weight")],
                       g[name("norm1.bias")]);
      keep("sum1", d);
      const dContext = keep("context", through("self_attn.out_proj.", s("context"), d));
      const {dq, dkv} = attentionBackward(s("q"), s("kv"), s("weights"), heads,
                                          offIn(question, l), dContext);
      keep("q", dq), keep("kv", dkv);
      addTo(d, through("self_attn.in_proj_", rowsAt(x, places), dq));
      const dx = matrix(x.rows, H);
      places.forEach((t, i) => dx.data.set(d.data.subarray(i * H, (i + 1) * H), t * H));
      addTo(dx, through("self_attn.in_proj_", x, dkv, H));
      d = dx;
    }
    gradients.x0 = copy(d);
    d = normBackward(all.embedded, w["embedding_norm.weight"], epsilon, d,
                     g["embedding_norm.weight"], g["embedding_norm.bias"]);
    gradients.embedded = d;
    row.tokens.forEach((token, t) => {
      for (let i = 0; i < H; ++i) {
        g["item_embedding.weight"][token * H + i] += d.data[t * H + i];
        g["position_embedding.weight"][t * H + i] += d.data[t * H + i];
      }
    });
    return {gradients, tensors: g};
  }

  // ---- Answers ---------------------------------------------------------------------------------

  // Of scores at a temperature: the ten best items that are not shown, the loss at the target and
  // its rank among them (ties count half, as in the header).
  function answer(run, history, question) {
    const scores = run.all.scores.data.map(s => s / question.temperature);
    const {p, logSum} = softmax(scores), target = history[question.place];
    const seen = new Set(run.row.from.filter(i => i >= 0).map(i => history[i]));
    const unseen = [...p.keys()].filter(item => !seen.has(item));
    const top = [...unseen].sort((a, b) => p[b] - p[a] || a - b).slice(0, 10);
    const better = unseen.filter(item => p[item] > p[target]).length;
    const ties = unseen.filter(item => p[item] === p[target]).length - 1;
    return {p, loss: logSum - scores[target], rank: 1 + better + Math.floor(Math.max(ties, 0) / 2),
            top: top.map(item => [item, p[item]])};
  }

  // ---- What the page carries -------------------------------------------------------------------

  function floats(base64) {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; ++i) bytes[i] = text.charCodeAt(i);
    return Float64Array.from(new Float32Array(bytes.buffer));
  }

  function tensors(weights) {
    const values = floats(weights.values);
    return Object.fromEntries(Object.entries(weights.tensors).map(([name, {shape, offset}]) => {
      const size = shape.reduce((product, n) => product * n, 1);
      return [name, values.subarray(offset, offset + size)];
    }));
  }

  // The library's own matrices: {all, gradients}, as forward() and backward() give them.
  function recorded(record) {
    const all = {}, gradients = {};
    for (const [name, {shape: [rows, cols], value, gradient}] of Object.entries(record)) {
      all[name] = {rows, cols, data: floats(value)};
      if (gradient) gradients[name] = {rows, cols, data: floats(gradient)};
    }
    return {all, gradients};
  }

  // ---- The page against the library ------------------------------------------------------------

  const furthest = (mine, theirs) => {
    let largest = 1e-30, worst = 0;
    theirs.data.forEach((value, i) => {
      largest = Math.max(largest, Math.abs(value));
      worst = Math.max(worst, Math.abs(value - mine.data[i]));
    });
    return mine.data.length === theirs.data.length ? worst / largest : Infinity;
  };

  // How far forward() and backward() are from what the library recorded (as a share of the largest
  // number of each matrix), from the gradients of its tensors, and from its answers to the edits.
  function compare(data) {
    const w = tensors(data.weights), {model, history, question} = data;
    const run = forward(model, w, history, question), target = history[question.place];
    const back = backward(model, w, question, run, target);
    const theirs = recorded(data.record);
    const differences = {matrices: 0, gradients: 0, tensors: 0, answers: 0};
    for (const [name, value] of Object.entries(theirs.all)) {
      differences.matrices = Math.max(differences.matrices, furthest(run.all[name], value));
    }
    for (const [name, value] of Object.entries(theirs.gradients)) {
      differences.gradients = Math.max(differences.gradients, furthest(back.gradients[name], value));
    }
    const compareLength = (mine, length) => {
      const size = Math.sqrt(mine.reduce((sum, x) => sum + x * x, 0));
      differences.tensors = Math.max(differences.tensors, Math.abs(size - length) / (length || 1));
    };
    for (const [name, , length, element, value] of data.checks.tensors.rows) {
      const mine = back.tensors[name], scale = Math.abs(value) || 1;
      differences.tensors = Math.max(differences.tensors, Math.abs(mine[element] - value) / scale);
      compareLength(mine, length);
    }
    for (const edit of data.edits) {
      const edited = forward(model, w, history, edit), mine = answer(edited, history, edit);
      differences.answers = Math.max(differences.answers,
                                     Math.abs(Math.exp(-mine.loss) - Math.exp(-edit.answer.loss)));
      for (const [item, p] of edit.answer.top) {
        differences.answers = Math.max(differences.answers, Math.abs(mine.p[item] - p));
      }
      if (!edit.lengths) continue;
      const gradients = backward(model, w, edit, edited, history[edit.place]).tensors;
      for (const [name, length] of Object.entries(edit.lengths)) compareLength(gradients[name], length);
    }
    return differences;
  }

  return {forward, backward, answer, compare, recorded, tensors, softmax, settings, rowOf};
})();

if (typeof module !== "undefined") module.exports = network;
