import {
  axis, button, change, chart, clamp, draggable, experiments, fill, follow, format, h, handle, html, linear, marker,
  path, place, s, set, slider, table, unique,
} from "./kit.js";

// ---- arithmetic: the same numbers as estimator_playground.py --------------------------------------------

const KINDS = ["k1", "k2", "k3"];
const GRID = Array.from({ length: 181 }, (_, i) => -6 + i / 15);
const BINS = 96;
const MAP = [0.05, 2.6];

// NumPy's RandomState(seed).standard_normal(n): Mersenne Twister, 53 bits a uniform, Marsaglia's polar method.
function standardNormal(seed, n) {
  const key = new Uint32Array(624);
  key[0] = seed;
  for (let i = 1; i < 624; i++) key[i] = Math.imul(1812433253, key[i - 1] ^ (key[i - 1] >>> 30)) + i;
  let at = 624;
  function word() {
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const joined = (key[i] & 0x80000000) | (key[(i + 1) % 624] & 0x7fffffff);
        key[i] = key[(i + 397) % 624] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let bits = key[at++];
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    return (bits ^ (bits >>> 18)) >>> 0;
  }
  const uniform = () => ((word() >>> 5) * 67108864 + (word() >>> 6)) / 9007199254740992;
  const drawn = [];
  while (drawn.length < n) {
    const [x, y] = [2 * uniform() - 1, 2 * uniform() - 1];
    const square = x * x + y * y;
    if (square >= 1 || square === 0) continue;
    const size = Math.sqrt((-2 * Math.log(square)) / square);
    drawn.push(size * y, size * x);
  }
  return Float64Array.from(drawn.slice(0, n));
}

let kept = { seed: null, n: null, drawn: null }; // a drag draws nothing anew
function normals(seed, n) {
  if (kept.seed !== seed || kept.n !== n) kept = { seed, n, drawn: standardNormal(seed, n) };
  return kept.drawn;
}

const bell = (x) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);

// The normal distribution function, by a series of positive terms (Marsaglia 2004), and by a continued fraction
// far out, so that small probabilities keep their digits.
function phi(x) {
  if (x > 4) return 1 - phi(-x);
  if (x < -4) {
    let rest = -x;
    for (let k = 60; k > 0; k--) rest = -x + k / rest;
    return bell(x) / rest;
  }
  let [total, term] = [x, x];
  for (let k = 3; total + (term *= (x * x) / k) !== total; k += 2) total += term;
  return 0.5 + total * bell(x);
}

const within = (low, high) => (low > 0 ? phi(-low) - phi(-high) : phi(high) - phi(low)); // P(low < y < high)

// gaussian_moments in moments.py: the policy is N(0, 1), the reference N(m, s²).
function moments(m, s) {
  const excess = s * s - 1;
  const [a, b] = [-excess / (2 * s * s), -m / (s * s)];
  const kl = Math.log(s) + (m * m - excess) / (2 * s * s);
  const [c2, c3] = [2 * a ** 2 + b ** 2, 8 * a ** 3 + 6 * a * b ** 2];
  const second = c2 + kl ** 2;
  const square = 48 * a ** 4 + 48 * a ** 2 * b ** 2 + 2 * c2 ** 2 + 4 * kl * c3 + 4 * kl ** 2 * c2;
  const jeffreys = (excess ** 2 + 2 * m ** 2 + m ** 2 * excess) / (2 * (1 + excess));
  const chi2 = excess < 1 ? Math.expm1(m ** 2 / (1 - excess) - Math.log1p(-(excess ** 2)) / 2) : Infinity;
  const third = excess === 0 ? chi2 - m ** 2 : c2 + chi2 - 2 * jeffreys;
  return {
    kl, chi2, jeffreys,
    mean: [kl, second / 2, kl],
    bias: [0, second / 2 - kl, 0],
    variance: [c2, square / 4, Math.max(third, 0)],
  };
}

// P(log-ratio <= bound): it is a·y² + b·y + kl − a of a standard normal y.
function below(bound, m, s, kl) {
  const [a, b] = [(1 / (s * s) - 1) / 2, -m / (s * s)];
  const c = kl - a - bound;
  const sign = b < 0 || Object.is(b, -0) ? -1 : 1;
  if (a === 0) return b === 0 ? Number(c <= 0) : phi((sign * -c) / b);
  const inside = b * b - 4 * a * c;
  const q = -(b + sign * Math.sqrt(Math.max(inside, 0))) / 2;
  if (!(inside > 0)) return a > 0 ? 0 : 1;
  const [low, high] = [q / a, c / q].sort((x, y) => x - y);
  return a > 0 ? within(low, high) : phi(low) + phi(-high);
}

// Newton from beyond the root of a convex function.
function newton(x, value, slope) {
  for (let i = 0; i < 30; i++) {
    const step = value(x) / slope(x);
    x -= step;
    if (!(Math.abs(step) > 1e-16 * x)) break;
  }
  return x;
}

// Exact probabilities of equal bins: k2 <= t where |log-ratio| <= √(2t), k3 <= t between two roots.
function masses(edges, m, s, kl) {
  const cumulative = edges.map((t) => {
    const first = below(t, m, s, kl);
    if (t < 0) return [first, 0, 0];
    if (m === 0 && s === 1) return [first, 1, 1];
    const root = Math.sqrt(2 * t);
    const right = t && newton(root + (2 * t) / 3, (x) => Math.expm1(-x) + x - t, (x) => -Math.expm1(-x));
    const left = t && newton(Math.log1p(t + root), (x) => Math.expm1(x) - x - t, Math.expm1);
    const held = (low, high) => below(high, m, s, kl) - below(low, m, s, kl);
    return [first, held(-root, root), held(-left, right)];
  });
  return KINDS.map((_, k) => edges.slice(1).map((_, i) => cumulative[i + 1][k] - cumulative[i][k]));
}

// Where a function that rises from low to high is zero.
function bisect(f, low, high) {
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (f(middle) > 0) high = middle;
    else low = middle;
  }
  return (low + high) / 2;
}

const louder = (m) => (s) => {
  const { variance } = moments(m, s);
  return variance[2] - variance[0];
};
const RIM = Array.from({ length: 61 }, (_, i) => bisect(louder(i / 20), 0.1, 1.4));

function sameKl(kl) {
  const excess = (s) => (s ** -2 - 1) / 2 + Math.log(s) - kl;
  const ends = MAP.map((end) => (excess(end) > 0 ? bisect((t) => excess(1 + t * (end - 1)), 0, 1) : null));
  const [low, high] = ends.map((t, i) => (kl > 0 ? 1 + (t ?? 1) * (MAP[i] - 1) : 1));
  const widths = Array.from({ length: 41 }, (_, i) => low + ((high - low) * (1 - Math.cos((i * Math.PI) / 40))) / 2);
  return [widths.map((w) => Math.sqrt(Math.max(2 * w * w * (kl - Math.log(w) + 0.5) - 1, 0))), widths];
}

function batch({ policy_mean, policy_sd, ref_mean, ref_sd, n, seed }) {
  const normal = normals(seed, n);
  const [scale, shift] = [Math.log(ref_sd / policy_sd), policy_mean - ref_mean];
  const ratio = normal.map((y) => (((shift + policy_sd * y) / ref_sd) ** 2 - y * y) / 2 + scale);
  const estimates = [ratio, ratio.map((v) => (v * v) / 2), ratio.map((v) => Math.expm1(-v) + v)];
  const counts = [1];
  for (let last = 1; last < n; counts.push(last)) last = Math.min(n, last + Math.max(1, Math.floor(last / 16)));
  const running = estimates.map((values) => {
    let [total, done] = [0, 0];
    return counts.map((count) => {
      while (done < count) total += values[done++];
      return total / count;
    });
  });
  const sample_mean = running.map((means) => means.at(-1));
  const scatter = (values, mean) => values.reduce((total, v) => total + (v - mean) * (v - mean), 0);
  return {
    counts, running, sample_mean,
    draws: Array.from(normal.subarray(0, 100), (y) => policy_mean + policy_sd * y),
    sample_sd: estimates.map((values, k) => Math.sqrt(scatter(values, sample_mean[k]) / (n - 1))),
    largest: estimates.map((values) => values.reduce((a, b) => (a > b ? a : b))),
  };
}

export function compute(state) {
  const { policy_mean, policy_sd, ref_mean, ref_sd, n } = state;
  const [mu, sigma] = [(ref_mean - policy_mean) / policy_sd, ref_sd / policy_sd];
  const exact = moments(mu, sigma);
  const { kl, mean, variance } = exact;
  const spread = 2.6 * Math.sqrt(variance[0]);
  const low = Math.min(0, kl - spread);
  const width = (Math.max(kl + spread, 1.1 * mean[1], 0.02) - low) / BINS;
  const edges = Array.from({ length: BINS + 3 }, (_, i) => (Math.floor(low / width) - 1 + i) * width);
  const density = (m, sd) => GRID.map((x) => bell((x - m) / sd) / sd);
  return {
    ...exact,
    ...batch(state),
    mu, sigma, edges,
    sd: variance.map(Math.sqrt),
    standard_error: variance.map((v) => Math.sqrt(v / n)),
    draws_needed: variance.map((v) => (kl ? (100 * v) / kl ** 2 : NaN)),
    negative: mu === 0 && sigma === 1 ? 0 : below(0, mu, sigma, kl),
    policy_density: density(policy_mean, policy_sd),
    ref_density: density(ref_mean, ref_sd),
    density: masses(edges, mu, sigma, kl).map((row) => row.map((mass) => mass / width)),
    rim: RIM,
    same_kl: sameKl(kl),
  };
}

// ---- the picture ----------------------------------------------------------------------------------------

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [340, 262, 44, 332, 26, 222];
const NAMES = ["k₁", "k₂", "k₃"];
const word = (kind, text, attributes = {}) => s("text", { class: `kl-word kl-${kind}`, text, ...attributes });
const note = (text, attributes = {}) => s("text", { class: "kl-ep-note", text, ...attributes });
const arrows = (kind) => s("path", { d: "M-11 0L-3 -6V6ZM11 0L3 -6V6Z", class: `kl-marker kl-${kind}` });

const STATE = { policy_mean: 0, policy_sd: 1, ref_mean: 0, ref_sd: 1, n: 100, seed: 7 };
const TRY = [
  {
    title: "A KL of 0.128 nats, and an error bar without end.",
    text:
      "From σ = √2 on, the variance of <i>k</i>₃ is infinite. In this batch, draw 6,917 alone, of 307 nats, " +
      "lifts its mean from 0.124 to 0.155. Draw again: in half of the first 1,000 seeds the sd within the batch is " +
      "below 0.9 and gives no hint. Pull the width in to 1.4: now the sd is 1.490, still four times that of <i>k</i>₁.",
    state: { ...STATE, ref_sd: 1.5, n: 10000, seed: 13 },
  },
  {
    title: "A KL cannot be negative. This one is −0.160.",
    text:
      "Nothing is broken. Of the draws, 40 % have <i>k</i>₁ &lt; 0, and so have 13 % of all means of 20 draws. " +
      "<i>k</i>₃ needs 218 draws for an error of a tenth of the KL and <i>k</i>₁ 1,600. Now shift the " +
      "reference to 1.2: here <i>k</i>₃ is the noisier one.",
    state: { ...STATE, ref_mean: 0.5, n: 20, seed: 0 },
  },
  {
    title: "k₂ errs to either side.",
    text:
      "Against a reference twice as wide <i>k</i>₂ reads 0.191 where the KL is 0.318: 40 % low. Pull the reference " +
      "in to 0.5 and it reads 2.576 for 0.807: three times too much. More draws mend neither.",
    state: { ...STATE, ref_sd: 2, n: 3000 },
  },
];

const out = (name, digits = 3) => `<output data-number="${name}" data-digits="${digits}"></output>`;
const FORMULA = `
<p>In sds of the policy, the shift <var>μ</var> = ${out("mu")} and the width <var>σ</var> = ${out("sigma")} of the reference
decide everything.</p>
<p>KL = log <var>σ</var> + (1 + <var>μ</var>²) / 2<var>σ</var>² − ½<br>
= log ${out("sigma")} + (1 + ${out("mu")}²) / (2 · ${out("sigma")}²) − ½ = ${out("kl")} nats</p>
<p>E <span class="kl-word kl-k2"><var>k</var>₂</span> = ½ (Var <var>k</var>₁ + KL²)<br>= ½ (${out("variance.0")} + ${out("kl")}²) = ${out("mean.1")}</p>
<p>Var <span class="kl-word kl-k3"><var>k</var>₃</span> = Var <var>k</var>₁ + <var>χ</var>² − 2<var>J</var><br>= ${out("variance.0")} + ${out("chi2")} − 2 · ${out("jeffreys")} = ${out("variance.2")}</p>
<p class="kl-ep-verdict"></p>`;

const READINGS = [
  ["exact mean", "mean"], ["exact bias", "bias"], ["sd of one draw", "sd"], ["draws for KL ± 10 %", "draws_needed", 0],
  ["mean of this batch", "sample_mean"], ["its standard error", "standard_error"], ["sd within this batch", "sample_sd"],
];
const NUMBERS = `<table class="kl-ep-numbers"><caption>One draw, and this batch (nats)</caption><thead><tr><td></td>${KINDS.map(
  (kind, k) => `<th scope="col" class="kl-word kl-${kind}">${NAMES[k]}</th>`,
).join("")}</tr></thead><tbody>${READINGS.map(
  ([text, name, digits]) => `<tr><th scope="row">${text}</th>${KINDS.map((_, k) => `<td>${out(`${name}.${k}`, digits)}</td>`).join("")}</tr>`,
).join("")}</tbody></table>`;

function verdict({ sigma, sd: [first, , third], kl }) {
  if (first === 0) return "The two agree: every draw of every estimator is 0.";
  if (sigma * sigma >= 2) return "σ ≥ √2: k₃ has infinite variance.";
  if (third === Infinity) return "The variance of k₃ is finite, but above 10³⁰⁸.";
  const [low, high] = third < first ? ["k₃", "k₁"] : ["k₁", "k₃"];
  const times = Math.max(first / third, third / first);
  return `${low} is the quieter one: the sd of ${high} is ${format(times, 2)} times as large.`;
}

function render({ model, el }) {
  const panels = [drawPair(model), drawSpread(), drawMap(model), drawBatch()];
  const captions = [
    `Drag the peaks and the arrows. Ticks: the first draws. Shaded: where <i>k</i>₁ &lt; 0, with probability ${out("negative")}.`,
    "One draw of each, exactly: areas are probabilities (peaks are cut off). Marks: mean ± sd. Dotted: the KL.",
    "Drag the reference. Dotted: references at the same KL. The policy sits at (0, 1).",
    "The mean of the first draws, of more and more of them. Right: this batch; bands: exact mean ± standard error.",
  ];
  const size = slider({
    label: html("draws in the batch, <var>n</var> (logarithmic)"), min: 10, max: 10000, step: 0.02, log: true,
    spoken: (value) => `${value} draws`,
    change: (value) => change(model, { n: Math.round(value) }),
  });
  const id = unique("seed");
  const seed = h("input", { id, type: "number", min: 0, max: 9999, step: 1, change: () => sow(Number(seed.value)) });
  const sow = (value) => {
    change(model, { seed: Number.isFinite(value) ? clamp(Math.round(value), 0, 9999) : model.get("seed") });
    seed.value = model.get("seed");
  };
  const again = button("Draw again", () => sow((model.get("seed") + 1) % 10000));
  const formula = h("div", { class: "kl-formula" }, html(FORMULA));
  const data = table("One draw and the batch, for each estimator, in nats", ["", ...NAMES]);
  el.classList.add("kl-root");
  el.append(
    h("div", { class: "kl-panels" }, ...panels.map(({ node }, i) => h("figure", {}, node, h("figcaption", {}, html(captions[i]))))),
    h("div", { class: "kl-ep-batch" }, size.node, h("span", {}, h("label", { for: id }, "seed"), seed), again),
    h("div", { class: "kl-ep-reading" }, formula, html(NUMBERS)),
    experiments(model, TRY),
    data.node,
  );
  return follow(model, Object.keys(STATE), (state) => {
    const numbers = compute(state);
    panels.forEach(({ update }) => update(state, numbers));
    size.update(state.n);
    if (document.activeElement !== seed) seed.value = state.seed;
    fill(el, numbers);
    set(formula.querySelector(".kl-ep-verdict"), { text: verdict(numbers) });
    const rows = [...READINGS, ["largest draw", "largest"], ["variance of one draw", "variance"]];
    data.update(rows.map(([text, name]) => [text, ...numbers[name]]));
  });
}

// The two densities, with a handle on each peak and one at each sd.
function drawPair(model) {
  const node = chart({ width: WIDTH, height: HEIGHT, interactive: true, label: "The densities of the policy and of the reference" });
  const across = linear([-6, 6], [LEFT, RIGHT]);
  const [xAxis, yAxis] = [axis("x", { at: BOTTOM, title: "x, drawn from the policy", count: 6 }), axis("y", { at: LEFT, title: "density", grid: RIGHT - LEFT, count: 4 })];
  xAxis.update(across);
  const [negative, rug] = [s("path", { class: "kl-ep-negative kl-k1" }), s("path", { class: "kl-ep-rug" })];
  const pair = [["ref", "reference"], ["policy", "policy"]].map(([name, kind]) => {
    const [area, line] = [s("path", { class: `kl-ep-area kl-${kind}` }), s("path", { class: `kl-line kl-${kind}` })];
    const grip = (what, shape, limits, at) =>
      handle({
        label: `${what} of the ${kind}`, ...limits, step: 0.05, page: 0.5, vertical: false, shape, at,
        change: (value) => change(model, { [`${name}_${what}`]: value }),
      });
    const mean = grip("mean", marker(kind, 7), { min: -3, max: 3 }, ({ x }) => across.invert(x));
    const sd = grip("sd", arrows(kind), { min: 0.4, max: 2.5 }, ({ x }) => across.invert(x) - model.get(`${name}_mean`));
    return { name, area, line, mean, sd, label: word(kind, kind) };
  });
  node.append(
    xAxis.node, yAxis.node, ...pair.map((one) => one.area), negative, rug, ...pair.map((one) => one.line),
    ...pair.map((one) => one.label), ...pair.flatMap((one) => [one.sd.node, one.mean.node]),
  );
  let tallest = 0;
  const update = (state, numbers) => {
    const top = Math.max(0.45, ...pair.map(({ name }) => 0.44 / state[`${name}_sd`]));
    const up = linear([0, top], [BOTTOM, TOP]);
    if (top !== tallest) yAxis.update(up);
    tallest = top;
    const trace = (values) => path(values.map((p, i) => [across(GRID[i]), up(p)]));
    const filled = (values) => `${trace(values)}L${RIGHT} ${BOTTOM}L${LEFT} ${BOTTOM}Z`;
    const refSide = state.ref_mean < state.policy_mean ? -1 : 1; // names stand at the outer flanks
    for (const { name, area, line, mean, sd, label } of pair) {
      const density = numbers[`${name}_density`];
      const [middle, spread] = [state[`${name}_mean`], state[`${name}_sd`]];
      const peak = 1 / (spread * Math.sqrt(2 * Math.PI));
      set(line, { d: trace(density) });
      set(area, { d: filled(density) });
      mean.update(across(middle), up(peak), middle, `mean ${format(middle, 2)}`);
      sd.update(across(middle + spread), up(peak * Math.exp(-0.5)), spread, `sd ${format(spread, 2)}`);
      const side = name === "ref" ? refSide : -refSide;
      set(label, { "text-anchor": side > 0 ? "start" : "end" });
      place(label, clamp(across(middle + side * 1.45 * spread) + side * 6, LEFT + 58, RIGHT - 58), up(peak * 0.42));
    }
    set(negative, { d: filled(numbers.policy_density.map((p, i) => (numbers.ref_density[i] > p ? p : 0))) });
    set(rug, { d: numbers.draws.map((x) => `M${across(x).toFixed(1)} ${BOTTOM}v-9`).join("") });
  };
  return { node, update };
}

// How one draw of each estimator is distributed: a row each, on one scale of nats.
function drawSpread() {
  const node = chart({ width: WIDTH, height: HEIGHT, label: "The exact distributions of k1, k2 and k3, with their means and standard deviations" });
  const xAxis = axis("x", { at: BOTTOM, title: "estimate from one draw  [nats]", count: 5 });
  const kl = s("path", { class: "kl-line kl-exact" });
  const name = note("", { "text-anchor": "middle", y: 16 });
  const rows = KINDS.map((kind, k) => {
    const foot = TOP + 42 + 62 * k;
    const [area, line] = [s("path", { class: `kl-ep-area kl-${kind}` }), s("path", { class: `kl-line kl-${kind} kl-ep-thin` })];
    const [bar, spot] = [s("path", { class: `kl-line kl-${kind} kl-ep-thin` }), s("g", {}, marker(kind, 5))];
    const spread = s("text", { class: "kl-ep-number", x: RIGHT, y: foot - 18, "text-anchor": "end" });
    node.append(area, line, bar, spot, spread, word(kind, NAMES[k], { x: 14, y: foot - 4 }));
    return { foot, area, line, bar, spot, spread };
  });
  node.append(xAxis.node, kl, name);
  const update = (_, { edges, density, mean, sd, kl: exact }) => {
    const across = linear([edges[0], edges.at(-1)], [LEFT, RIGHT]);
    xAxis.update(across);
    const top = 1.8 * Math.max(...density[0]);
    rows.forEach(({ foot, area, line, bar, spot, spread }, k) => {
      const tall = (p) => foot - Math.min(1, p / top) * 44;
      const steps = path(density[k].flatMap((p, i) => [[across(edges[i]), tall(p)], [across(edges[i + 1]), tall(p)]]));
      set(line, { d: steps });
      set(area, { d: `${steps}L${RIGHT} ${foot}L${LEFT} ${foot}Z` });
      const [from, to] = [mean[k] - sd[k], mean[k] + sd[k]].map((v) => clamp(across(v), LEFT, RIGHT));
      set(bar, { d: `M${from.toFixed(1)} ${foot + 9}H${to.toFixed(1)}` });
      place(spot, across(mean[k]), foot + 9);
      set(spread, { text: `sd ${format(sd[k], 3)}` });
    });
    set(kl, { d: `M${across(exact).toFixed(1)} ${TOP - 4}V${BOTTOM}` });
    set(name, { x: clamp(across(exact), LEFT + 30, RIGHT - 30), text: `KL ${format(exact, 3)}` });
  };
  return { node, update };
}

// All pairs there are: the shift and the width of the reference, and which of k1 and k3 is the quieter one there.
function drawMap(model) {
  const node = chart({ width: WIDTH, height: HEIGHT, label: "A map of shift and width: k3 is quieter than k1 in a region around the policy, and has infinite variance above a width of √2" });
  const [across, up] = [linear([-3, 3], [LEFT, RIGHT]), linear([0, 2.5], [BOTTOM, TOP])];
  const [xAxis, yAxis] = [axis("x", { at: BOTTOM, title: "shift μ  [sds of the policy]", count: 6 }), axis("y", { at: LEFT, title: "width σ  [sds of the policy]", count: 5 })];
  xAxis.update(across);
  yAxis.update(up);
  const limit = up(Math.SQRT2);
  const right = RIM.map((width, i) => [across(i / 20), up(width)]);
  const rim = path([...RIM.map((width, i) => [across(-i / 20), up(width)]).reverse(), ...right]);
  const id = unique("map");
  const same = s("path", { class: "kl-line kl-exact" });
  const spot = s("g", {}, s("circle", { r: 20, class: "kl-reach" }), marker("reference", 7));
  node.append(
    s("clipPath", { id }, s("rect", { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP })),
    s("rect", { x: LEFT, y: TOP, width: RIGHT - LEFT, height: limit - TOP, class: "kl-ep-box kl-k1" }),
    s("path", { d: `${rim}V${limit}H${LEFT}Z`, class: "kl-ep-area kl-k1" }),
    s("path", { d: `${rim}V${BOTTOM}H${LEFT}Z`, class: "kl-ep-area kl-k3" }),
    s("path", { d: rim, class: "kl-line kl-k3 kl-ep-thin" }),
    s("path", { d: `M${LEFT} ${limit}H${RIGHT}`, class: "kl-line kl-k1 kl-ep-thin" }),
    xAxis.node, yAxis.node, s("g", { "clip-path": `url(#${id})` }, same),
    word("k1", "Var k₃ = ∞", { x: RIGHT - 6, y: TOP + 18, "text-anchor": "end" }), note("√2", { x: RIGHT - 6, y: limit - 4, "text-anchor": "end" }),
    word("k1", "k₁ quieter", { x: RIGHT - 6, y: up(1.2), "text-anchor": "end" }), word("k3", "k₃ quieter", { x: across(0), y: up(0.3), "text-anchor": "middle" }),
    place(s("g", {}, marker("policy", 4)), across(0), up(1)), spot,
  );
  draggable(spot, ({ x, y }) => {
    const [mean, sd] = [model.get("policy_mean"), model.get("policy_sd")];
    const settle = (value, low, high) => Number(clamp(Math.round(value / 0.05) * 0.05, low, high).toPrecision(12));
    change(model, { ref_mean: settle(mean + sd * across.invert(x), -3, 3), ref_sd: settle(sd * up.invert(y), 0.4, 2.5) });
  });
  const update = (_, { mu, sigma, same_kl: [shifts, widths] }) => {
    const half = (sign) => shifts.map((shift, i) => [across(sign * shift), up(widths[i])]);
    set(same, { d: path([...half(1), ...half(-1).reverse()]) });
    place(spot, across(clamp(mu, -3, 3)), up(clamp(sigma, 0, 2.5)));
  };
  return { node, update };
}

// The batch: means of its first draws, and at the right where they ended, beside the exact means.
function drawBatch() {
  const [end, columns] = [238, [272, 296, 320]];
  const node = chart({ width: WIDTH, height: HEIGHT, label: "The mean of k1, k2 and k3 over the first draws, and over the whole batch beside the exact means" });
  const [xAxis, yAxis] = [axis("x", { at: BOTTOM, title: "draws", count: 4 }), axis("y", { at: LEFT, title: "mean so far  [nats]", grid: RIGHT - LEFT, count: 5 })];
  const id = unique("batch");
  const inside = s("g", { "clip-path": `url(#${id})` });
  const kl = s("path", { class: "kl-line kl-exact" });
  const rows = KINDS.map((kind, k) => {
    const [line, box, exact] = [s("path", { class: `kl-line kl-${kind}` }), s("rect", { x: columns[k] - 9, width: 18, class: `kl-ep-box kl-${kind}` }), s("path", { class: `kl-line kl-${kind} kl-ep-thin` })];
    const spot = s("g", {}, marker(kind, 5));
    inside.append(box, exact, line);
    node.append(word(kind, NAMES[k], { x: columns[k], y: BOTTOM + 16, "text-anchor": "middle" }));
    return { line, box, exact, spot };
  });
  node.append(s("clipPath", { id }, s("rect", { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP })), xAxis.node, yAxis.node, inside, kl, ...rows.map(({ spot }) => spot));
  const update = ({ n }, { counts, running, mean, bias, sd, sample_mean, standard_error, kl: exact }) => {
    const half = Math.max(1.4 * Math.abs(bias[1]), (2.2 * sd[0]) / n ** 0.25) || 0.05;
    const up = linear([exact - half, exact + half], [BOTTOM, TOP]);
    const logs = linear([0, Math.log10(n)], [LEFT, end]);
    const across = (count) => logs(Math.log10(count));
    Object.assign(across, { range: [LEFT, end], ticks: () => [1, 10, 100, 1000, 10000].filter((count) => count <= n) });
    xAxis.update(across);
    yAxis.update(up);
    rows.forEach(({ line, box, exact: tick, spot }, k) => {
      const [from, to] = [mean[k] + standard_error[k], mean[k] - standard_error[k]].map((v) => clamp(up(v), TOP, BOTTOM));
      set(line, { d: path(counts.map((count, i) => [across(count), clamp(up(running[k][i]), TOP - 50, BOTTOM + 50)])) });
      set(box, { y: from, height: Math.max(to - from, 1) });
      set(tick, { d: `M${columns[k] - 11} ${up(mean[k]).toFixed(2)}h22` });
      place(spot, columns[k], clamp(up(sample_mean[k]), TOP, BOTTOM));
    });
    set(kl, { d: `M${LEFT} ${up(exact)}H${RIGHT}` });
  };
  return { node, update };
}

export default { render };
