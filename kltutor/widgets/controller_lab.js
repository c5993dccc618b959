import {
  axis, button, change, chart, clamp, experiments, fill, follow, format, h, handle, html, linear, logarithmic, marker,
  path, place, s, set, short, slider, table, unique,
} from "./kit.js";

// ---- arithmetic: the same numbers as controller_lab.py --------------------------------------------------

const [N, ETA, LOWER, UPPER] = [512, 2, 0.01, 100];
const HORIZONS = Array.from({ length: 61 }, (_, i) => 256 * (100000 / 256) ** (i / 60));
const OCTAVES = Array.from({ length: 13 }, (_, i) => i - 6);

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
  return drawn.slice(0, n);
}

// The normal distribution function, by a series of positive terms (Marsaglia 2004).
function phi(x) {
  if (Math.abs(x) > 8) return x > 0 ? 1 : 0;
  let [total, term] = [x, x];
  for (let k = 3; total + (term *= (x * x) / k) !== total; k += 2) total += term;
  return 0.5 + (total * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
}

function bisect(rises, low, high) {
  for (let round = 0; round < 80; round++) {
    const middle = (low + high) / 2;
    if (rises(middle) > 0) high = middle;
    else low = middle;
  }
  return (low + high) / 2;
}

// The five rules, step by step in the order of the package, so that the last bit is the same where it can be.
function makeRule({ controller, start_beta: first, end_beta: end, target_kl: target, horizon, clip, kp, ki, kd, shape }) {
  const within = (beta) => Math.min(Math.max(beta, LOWER), UPPER);
  const error = (told) => Math.min(Math.max((told - target) / target, -clip), clip);
  let [beta, integral, before, count] = [first, Math.log(first), 0, 0];
  return {
    fixed: () => first,
    annealed() {
      const part = (count += N) / horizon;
      if (part >= 1) return end;
      if (shape === "linear") return first + (end - first) * part;
      if (shape === "exponential") return first * (end / first) ** part;
      return end + ((first - end) * (1 + Math.cos(Math.PI * part))) / 2;
    },
    ppo(told) {
      if (told > 1.5 * target) beta = within(beta * 2);
      else if (told < target / 1.5) beta = within(beta / 2);
      return beta;
    },
    ziegler: (told) => (beta = within(beta * (1 + (error(told) * N) / horizon))),
    pid(told) {
      const [e, dt] = [error(told), N / horizon];
      const sum = integral + ki * e * dt;
      const log = sum + kp * e + kd * (count ? (e - before) / dt : 0);
      const free = log < 709 ? Math.exp(log) : Infinity;
      if (!(e > 0 && free > UPPER) && !(e < 0 && free < LOWER)) integral = sum;
      [before, count] = [e, count + 1];
      return within(free);
    },
  }[controller];
}

let kept = { seed: null, drawn: [] }; // a drag draws nothing anew
function normals(seed) {
  if (kept.seed !== seed) kept = { seed, drawn: standardNormal(seed, 120) };
  return kept.drawn;
}

function run(state) {
  const { start_kl, start_beta, lag, rate, noise, seed, updates } = state;
  const [rule, ppo, drawn] = [makeRule(state), state.controller === "ppo", noise ? normals(seed) : []];
  const [kl, beta, told, distance] = [[start_kl], [start_beta], [], [start_kl]];
  let tilt = Math.sqrt(2 * start_kl);
  for (let k = 0; k < updates; k++) {
    const step = rate * (ppo ? 1 / beta[k] : 1 / beta[k] - tilt);
    tilt += step;
    distance.push((tilt * tilt) / 2);
    kl.push(ppo ? (step * step) / 2 : distance[k + 1]);
    const factor = noise ? Math.floor(Math.exp(noise * drawn[k] - (noise * noise) / 2) * 1e9 + 0.5) / 1e9 : 1;
    told.push(kl[Math.max(k + 1 - lag, 0)] * factor);
    beta.push(rule(told[k]));
  }
  return { kl, beta, told, distance };
}

// All roots of a polynomial (real coefficients, highest power first) as [re, im], by Aberth's iteration; `guess`
// are those of one nearby.
function roots(given, guess) {
  const c = given.slice(given.findIndex((x) => x !== 0));
  while (c.length > 1 && c[c.length - 1] === 0) c.pop();
  const n = c.length - 1;
  const size = Math.max(...c.slice(1).map((x, i) => Math.abs(x / c[0]) ** (1 / (i + 1))));
  const z = guess?.length === n
    ? guess.map(([x, y], i) => [x + 1e-3 * Math.cos(i + 0.4), y + 1e-3 * Math.sin(i + 0.4)]) // off where two met
    : c.slice(1).map((_, i) => [size * Math.cos(0.4 + (2 * Math.PI * i) / n), size * Math.sin(0.4 + (2 * Math.PI * i) / n)]);
  let most = 1;
  for (let round = 0; round < 100 && !(most < 1e-14); round++) {
    most = 0;
    z.forEach(([x, y], i) => {
      let [p, q, dp, dq] = [c[0], 0, 0, 0]; // the polynomial and its derivative, by Horner
      for (const a of c.slice(1)) {
        [dp, dq] = [dp * x - dq * y + p, dp * y + dq * x + q];
        [p, q] = [p * x - q * y + a, p * y + q * x];
      }
      const norm = p * p + q * q;
      if (norm === 0) return;
      let [u, v] = [(dp * p + dq * q) / norm, (dq * p - dp * q) / norm]; // derivative / value
      z.forEach(([a, b], j) => {
        const far = (x - a) ** 2 + (y - b) ** 2;
        if (j !== i && far > 0) [u, v] = [u - (x - a) / far, v + (y - b) / far];
      });
      const under = u * u + v * v;
      if (under === 0) return;
      z[i] = [x - u / under, y + v / under];
      most = Math.max(most, 1 / Math.sqrt(under) / (Math.hypot(x, y) + 1e-12));
    });
  }
  return most < 1e-9 || !guess ? z : roots(given); // from there it led nowhere
}

const times = (a, b) => a.reduce((sum, x, i) => plus(sum, [...b.map((y) => x * y), ...Array(a.length - 1 - i).fill(0)]), [0]);
function plus(a, b) {
  const [long, less] = a.length < b.length ? [b, a] : [a, b];
  return long.map((x, i) => x + (less[i - long.length + less.length] ?? 0));
}

// The characteristic polynomial of the loop, close to rest.
function polynomial({ controller, lag, rate, kp, ki, kd }, horizon, slope) {
  const dt = N / horizon;
  const policy = times([1, ...Array(lag).fill(0)], [1, rate - 1]);
  const scale = ETA * rate * slope;
  const terms = (list) => list.map((x) => scale * x);
  if (controller === "ziegler") return plus(times(policy, [1, -1]), [scale * dt, 0]);
  if (ki > 0) return plus(times(policy, [1, -1, 0]), terms([kp + ki * dt + kd / dt, -kp - (2 * kd) / dt, kd / dt]));
  return plus(times(policy, [1, 0]), terms([kp + kd / dt, -kd / dt]));
}

// The largest root; of several on one circle that of the slowest swing.
function largest(all) {
  const sizes = all.map(([x, y]) => Math.hypot(x, y));
  const size = Math.max(...sizes);
  const rim = all.filter((_, i) => sizes[i] > size * (1 - 1e-9));
  return rim.reduce((best, z) => (Math.abs(Math.atan2(z[1], z[0])) < Math.abs(Math.atan2(best[1], best[0])) ? z : best), rim[0] ?? [0, 0]);
}

function slowest([x, y]) {
  const size = Math.hypot(x, y);
  const swing = Math.abs(y) > 1e-6 || x < 0 ? Math.abs(Math.atan2(y, x)) : 0;
  const fall = size ? -Math.log(size) : Infinity;
  const damping = fall === Infinity ? 1 : fall || swing ? fall / Math.hypot(fall, swing) : 0;
  return { multiplier: size, period: swing ? (2 * Math.PI) / swing : Infinity, damping };
}

// The mean of m·factor − 1, clipped, for a log-normal factor of mean 1.
function clippedMean(m, noise, clip) {
  if (noise === 0) return clamp(m - 1, -clip, clip);
  const [low, high] = [1 - clip, 1 + clip];
  const at = (edge) => (edge > 0 ? (Math.log(edge / m) + (noise * noise) / 2) / noise : -Infinity);
  const [a, b] = [at(low), at(high)];
  return Math.max(low, 0) * phi(a) + m * (phi(b - noise) - phi(a - noise)) + high * phi(-b) - 1;
}

function restOf({ controller, start_beta, target_kl, clip, kp, ki }, noise) {
  const mean = (u) => clippedMean(Math.exp(u), noise, clip);
  if (controller === "ziegler" || ki > 0) return Math.exp(bisect(mean, -30, 30));
  const first = Math.log(start_beta) + Math.log(2 * target_kl) / 2;
  const rest = Math.exp(bisect((u) => first + u / 2 + (kp && kp * mean(u)), -30, 30));
  const [low, high] = [UPPER, LOWER].map((b) => 1 / (2 * b * b * target_kl));
  return clamp(rest, low, high);
}

function onset({ lag: d, rate: p }) {
  const middle = d * (2 - p);
  const z = (middle + Math.sqrt(middle ** 2 + 4 * (1 - d * d) * (1 - p))) / (2 * (d + 1));
  return z > 0 ? (z ** (d - 1) * (1 - z) * (z - 1 + p)) / p : 1;
}

function bound({ lag: d, rate: p }) {
  if (d === 0) return (4 - 2 * p) / p;
  const angle = bisect((t) => (d - 0.5) * t + Math.atan2(Math.sin(t), Math.cos(t) - 1 + p) - Math.PI / 2, 0, Math.PI);
  const [x, y] = [Math.cos(angle), Math.sin(angle)];
  return (Math.hypot(x - 1, y) * Math.hypot(x - 1 + p, y)) / p;
}

function theory(state) {
  const { controller, rate } = state;
  const found = { swings_from: NaN, grows_from: NaN };
  if (controller === "ppo") return { ...found, rest_kl: NaN, multiplier: NaN, period: NaN, damping: NaN, multipliers: HORIZONS.map(() => NaN) };
  if (controller === "fixed" || controller === "annealed") {
    const last = controller === "fixed" ? state.start_beta : state.end_beta;
    return { ...found, rest_kl: 1 / (2 * last * last), multipliers: HORIZONS.map(() => 1 - rate), ...slowest([1 - rate, 0]) };
  }
  if (controller === "ziegler") Object.assign(found, { swings_from: onset(state), grows_from: bound(state) });
  const still = restOf(state, 0);
  const slope = Math.abs(still - 1) < state.clip ? still : 0;
  let all = null;
  const multipliers = HORIZONS.map((horizon) => Math.hypot(...largest((all = roots(polynomial(state, horizon, slope), all)))));
  const now = slowest(largest(roots(polynomial(state, state.horizon, slope))));
  return { ...found, rest_kl: state.target_kl * restOf(state, state.noise), multipliers, ...now };
}

export function compute(state) {
  const { controller, target_kl: target, start_kl, start_beta, horizon, rate, updates } = state;
  const found = run(state);
  const { kl, beta } = found;
  const band = controller === "ppo" ? [target / 1.5, 1.5 * target] : [0.95 * target, 1.05 * target];
  const sides = kl.map((x) => (x > band[1]) - (x < band[0]));
  const last = sides.findLastIndex((side) => side !== 0);
  const met = sides.filter((side) => side !== 0);
  const past = start_kl <= target ? Math.max(...kl) - target : target - Math.min(...kl);
  const moved = beta.findIndex((b) => b >= 2 * beta[0] || b <= beta[0] / 2);
  const later = kl.slice(Math.floor(updates / 2) + 1);
  const rungs = OCTAVES.map((k) => (rate / (start_beta * 2 ** k)) ** 2 / 2);
  return {
    ...found,
    ...theory(state),
    gain: N / horizon,
    loop_gain: (ETA * N) / horizon,
    band,
    settled: last < updates ? last + 1 : Infinity,
    overshoot: past > 1e-12 * target ? past / target : 0,
    crossings: met.filter((side, i) => i > 0 && side !== met[i - 1]).length,
    doubled: moved < 0 ? Infinity : moved,
    mean_kl: later.reduce((total, x) => total + x, 0) / later.length,
    held: beta.filter((b) => b === LOWER || b === UPPER).length,
    gains: HORIZONS.map((one) => (ETA * N) / one),
    rungs,
    rungs_in_band: rungs.filter((x) => target / 1.5 <= x && x <= target * 1.5).length,
  };
}

// ---- what the hands may set ------------------------------------------------------------------------------

const [WIDTH, HEIGHT, LEFT, RIGHT] = [340, 330, 44, 328];
const [UPPER_PLOT, LOWER_PLOT] = [{ top: 26, bottom: 182 }, { top: 220, bottom: 288 }];
const STATE = {
  controller: "ziegler", target_kl: 1.5, start_kl: 1, start_beta: 0.7071, horizon: 1280, clip: 0.2, kp: 0.1, ki: 0.5, kd: 0,
  end_beta: 0.5774, shape: "linear", lag: 1, rate: 1, noise: 0, seed: 7, updates: 50,
};
const FEEDBACK = ["ppo", "ziegler", "pid"];
const LOOPS = ["ziegler", "pid"];
const refused = ({ controller, clip, horizon, kp, ki, kd }) =>
  (controller === "ziegler" && clip * N >= horizon) || (controller === "pid" && !(Math.max(kp, ki, kd) > 0));

// Change the state as a hand wants, and stop where the rule would refuse its settings.
function alter(model, values) {
  const next = Object.fromEntries(Object.keys(STATE).map((name) => [name, values[name] ?? model.get(name)]));
  if (refused(next)) {
    const [moved] = Object.keys(values);
    if (next.controller === "pid") values = { ...values, [moved === "controller" ? "ki" : moved]: 0.01 };
    else if (moved === "horizon") values = { horizon: Math.floor(next.clip * N) + 1 };
    else if (moved === "clip") values = { clip: Math.ceil((next.horizon / N) * 100 - 1.001) / 100 };
    else values = { ...values, clip: 0.2 };
  }
  change(model, values);
}

const TRY = [
  {
    title: "The rule of two hops for ever.",
    text:
      "PPO's rule rests where its KL is within a factor of 1.5 of the target. Doubling β divides the KL by four, so " +
      "from 2 nats it lands on 0.5, below the band, and from there on 2 again. Drag the first β up from 0.50 to 0.59: " +
      "one rung of the ladder stands in the band, and it rests. 41.5 % of all first βs hop.",
    state: { ...STATE, controller: "ppo", target_kl: 1, start_kl: 2, start_beta: 0.5, lag: 0, updates: 30 },
  },
  {
    title: "A huge error, and β hardly moves.",
    text:
      "The KL is at ten targets and told at once. The clip counts an error of 900 % as 20 %: at the released horizon β " +
      "gains 1 % per update and has doubled only after update 69. Slide the clip to its end: doubled after update 4.",
    state: { ...STATE, target_kl: 0.2, start_kl: 2, start_beta: 0.5, horizon: 10000, lag: 0, updates: 100 },
  },
  {
    title: "Old news makes a good gain swing.",
    text:
      "Told the KL after the update, this gain leaves 0.20 of an error per update. Slide the lag to 1: it leaves 0.89, " +
      "and the KL rings. At 2 it makes 1.08 of it, the swing never ends, and only a K·η below 0.62 would settle.",
    state: { ...STATE, lag: 0, updates: 80 },
  },
];

const out = (name, digits = 3) => `<output data-number="${name}" data-digits="${digits}"></output>`;
const live = (name) => `<span class="kl-live" data-live="${name}"></span>`;
const NEAR = `<p>Close to rest an update leaves |<var>z</var>| = ${out("multiplier")} of an error`;
const SWING = `; a swing takes ${out("period", 1)} updates, and its damping ratio is ${out("damping", 2)}.</p>`;
const ERROR = `clip(KL/target − 1, ±${live("clip")})`;
const WORDS = {
  fixed: `<p><var>β</var> = ${live("start_beta")}, whatever the KL. It goes to 1/(2<var>β</var>²) = ${out("rest_kl")} nats, and each update
leaves 1 − <var>ρ</var> = ${out("multiplier")} of the way.</p>`,
  annealed: `<p><var>β</var> goes from ${live("start_beta")} to ${live("end_beta")} in ${live("horizon")} episodes, whatever the KL.
At the end the KL goes to 1/(2<var>β</var>²) = ${out("rest_kl")} nats.</p>`,
  ppo: `<p>KL &gt; 1.5 · target = ${out("band.1")}: <var>β</var> × 2. KL &lt; target / 1.5 = ${out("band.0")}: <var>β</var> ÷ 2. Else nothing.</p>
<p>KL(old ‖ policy) = ½ (<var>ρ</var>/<var>β</var>)². Values of <var>β</var> in reach whose KL is in the band: ${out("rungs_in_band", 0)}.
What bounds the step does not bound the distance: KL(policy ‖ ref) is ${out("distance.10", 1)} nats after 10 updates.</p>`,
  ziegler: `<p><var>β</var> ← <var>β</var> · (1 + <var>K</var> · ${ERROR}), <var>K</var> = 512 / ${live("horizon")} = ${out("gain", 4)}</p>
<p>Loop gain <var>Kη</var> = ${out("gain", 4)} · 2 = ${out("loop_gain", 4)}. It swings from ${out("swings_from")} and no longer settles from
${out("grows_from")}.</p>`,
  pid: `<p>log <var>β</var> = log ${live("start_beta")} + ${live("kp")} <var>e</var> + ${live("ki")} Σ <var>e</var> Δ<var>t</var> +
${live("kd")} Δ<var>e</var>/Δ<var>t</var>, <var>e</var> = ${ERROR}, Δ<var>t</var> = 512 / ${live("horizon")} = ${out("gain", 4)}</p>`,
};
const BIAS = `<p>With this noise, clipped errors cancel where the KL is ${out("rest_kl")}, not ${live("target_kl")} nats (for a small gain).</p>`;
const HELD = `<p><var>β</var> is at a bound, 0.01 or 100, after ${out("held", 0)} of the updates.</p>`;
const READINGS = [
  ["settled", 0, "update from which on the KL stays in the band"], ["overshoot", 3, "overshoot, in targets"], ["crossings", 0, "crossings of the band"],
  ["doubled", 0, "update after which β is twice or half its first value"], ["mean_kl", 3, "mean KL of the second half, nats"],
];

function select(label, name, options, model) {
  const id = unique(name);
  const input = h(
    "select",
    { id, change: () => alter(model, { [name]: input.value }) },
    ...options.map(([value, text]) => h("option", { value }, text)),
  );
  return { node: h("label", { for: id }, label, input), update: (value) => (input.value = value) };
}

const told = (lag) => ["0: told the KL after the update", "1: told the KL before it"][lag] ?? `${lag}: told the KL of ${lag} updates ago`;

function render({ model, el }) {
  const rule = select("Rule for β", "controller", [
    ["fixed", "fixed"], ["annealed", "annealed"], ["ppo", "PPO's penalty: × 2, ÷ 2"], ["ziegler", "Ziegler's rule"], ["pid", "PID"],
  ], model);
  const shape = select("Shape", "shape", ["linear", "exponential", "cosine"].map((name) => [name, name]), model);
  const controls = {};
  const add = (name, label, limits, spoken, to = (value) => value) => {
    controls[name] = slider({
      label: html(label), ...limits, spoken,
      change(value) {
        alter(model, { [name]: to(value) });
        controls[name].update(model.get(name)); // where it may not go, it comes back from
      },
    });
  };
  add("horizon", "horizon", { min: 256, max: 100000, step: Math.log10(100000 / 256) / 260, log: true }, (v) => `${v} episodes`, Math.round);
  add("clip", "clip of the error", { min: 0.05, max: 10, step: Math.log10(200) / 230, log: true }, (v) => `±${short(v)}`, (v) => Number(v.toPrecision(3)));
  add("kp", "<var>k</var><sub>p</sub>, proportional", { min: 0, max: 3, step: 0.01 }, short);
  add("ki", "<var>k</var><sub>i</sub>, integral", { min: 0, max: 3, step: 0.01 }, short);
  add("kd", "<var>k</var><sub>d</sub>, derivative", { min: 0, max: 1, step: 0.01 }, short);
  add("lag", "lag", { min: 0, max: 6, step: 1 }, told);
  add("rate", "speed of the policy, <var>ρ</var>", { min: 0.02, max: 1, step: Math.log10(50) / 170, log: true }, (v) => `${short(100 * v)} %`, (v) => Number(v.toPrecision(3)));
  add("noise", "noise of the readings", { min: 0, max: 1, step: 0.05 }, (v) => (v ? `sd of their log ${short(v)}` : "none"));
  add("updates", "updates shown", { min: 10, max: 120, step: 1 }, (v) => `${v}`);
  const again = h("p", {}, button("Draw the noise again", () => change(model, { seed: (model.get("seed") + 1) % 10000 })));
  const used = {
    fixed: ["rate", "updates"],
    annealed: ["horizon", "rate", "updates"],
    ppo: ["rate", "lag", "noise", "updates"],
    ziegler: ["horizon", "clip", "rate", "lag", "noise", "updates"],
    pid: ["horizon", "clip", "kp", "ki", "kd", "rate", "lag", "noise", "updates"],
  };
  const left = drawRun(model);
  const loop = drawLoop(model);
  const ladder = drawPlant();
  const top = h("div", { class: "kl-cl-top" }, rule.node);
  const panel = h("div", { class: "kl-cl-controls" });
  const formula = h("div", { class: "kl-formula" });
  const readings = h("div", { class: "kl-cl-readings" }, html(READINGS.map(([key, digits, text]) => `<p>${out(key, digits)} <span>${text}</span></p>`).join("")));
  const right = h("figure");
  const caption = h("figcaption");
  const data = table("KL and β after each update, and the KL that the rule was told before it set β", ["update", "KL, nats", "told, nats", "β", "KL(policy ‖ ref), nats"]);
  el.classList.add("kl-root");
  el.append(
    top,
    h("div", { class: "kl-panels" }, h("figure", {}, left.node, caption), right),
    readings, panel, formula, experiments(model, TRY), data.node,
  );
  let shown = ""; // what belongs to one rule is put in when the rule is chosen; a redraw keeps the focus
  function choose({ controller, noise }, { period, held }) {
    const loops = LOOPS.includes(controller);
    const words = [WORDS[controller], loops ? NEAR + (period < Infinity ? SWING : ".</p>") : "", loops && noise > 0 ? BIAS : "", held ? HELD : ""];
    const key = `${controller} ${words.map((text) => text.length)}`;
    if (key === shown) return;
    formula.replaceChildren(html(words.join("")));
    if (shown.split(" ")[0] !== controller) {
      top.replaceChildren(rule.node, ...(controller === "annealed" ? [shape.node] : []));
      panel.replaceChildren(...used[controller].map((name) => controls[name].node), ...(FEEDBACK.includes(controller) ? [again] : []));
      right.replaceChildren((loops ? loop : ladder).node, h("figcaption", {}, html(
        loops
          ? "Drag the point: the gain, and what one update leaves of a small error. Lag and speed bend the curve."
          : controller === "ppo"
            ? "Squares: all that ×2 and ÷2 can reach. The rule rests only on one inside the band."
            : "The line: where the policy comes to rest for a β. It goes there, wherever the target is.",
      )));
      caption.replaceChildren(html(
        `Drag the target, the KL at the start and the ${controller === "annealed" ? "two ends of β" : "first β"}.` +
          (FEEDBACK.includes(controller) ? " Brown: what the rule is told." : " This rule does not look at the KL."),
      ));
    }
    shown = key;
  }
  return follow(model, Object.keys(STATE), (state) => {
    if (refused(state)) return; // a notebook is setting one trait after another
    const numbers = compute(state);
    choose(state, numbers);
    rule.update(state.controller);
    shape.update(state.shape);
    for (const [name, control] of Object.entries(controls)) control.update(state[name]);
    left.update(state, numbers);
    (LOOPS.includes(state.controller) ? loop : ladder).update(state, numbers);
    fill(formula, numbers);
    fill(readings, numbers);
    for (const node of formula.querySelectorAll("[data-live]")) set(node, { text: short(state[node.dataset.live]) });
    data.update(numbers.kl.map((kl, k) => [`${k}`, kl, k ? numbers.told[k - 1] : "", numbers.beta[k], numbers.distance[k]]));
  });
}

const note = (text, at = {}) => s("text", { class: "kl-cl-note", text, ...at });
const word = (role, text, at = {}) => s("text", { class: `kl-word kl-${role}`, text, ...at });

// A logarithmic axis with a mark at powers of two around what is drawn.
function octaves(values, range, least) {
  let [low, high] = [Math.floor(Math.log2(Math.min(...values)) - 0.1), Math.ceil(Math.log2(Math.max(...values)) + 0.1)];
  while (high - low < least) high - low < least && (high += 1) - low < least && (low -= 1);
  const step = Math.ceil((high - low) / 4);
  const marks = Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, i) => 2 ** (low + i * step));
  return Object.assign(logarithmic([2 ** low, 2 ** high], range), { ticks: () => marks });
}

// KL and β over updates, with handles on the target, on both first values and on the last β of a schedule.
function drawRun(model) {
  const node = chart({ width: WIDTH, height: HEIGHT, interactive: true, label: "KL with its target, and β below it, over policy updates" });
  const [klAxis, betaAxis] = [axis("y", { at: LEFT, title: "", grid: RIGHT - LEFT, count: 4 }), axis("y", { at: LEFT, title: "β  [reward per nat]", grid: RIGHT - LEFT, count: 4 })];
  const timeAxis = axis("x", { at: LOWER_PLOT.bottom, title: "policy update", count: 5 });
  const name = s("text", { class: "kl-title", x: LEFT - 7, y: UPPER_PLOT.top - 10 });
  const id = unique("run");
  const clip = s("clipPath", { id }, ...[UPPER_PLOT, LOWER_PLOT].map(({ top, bottom }) => s("rect", { x: LEFT - 6, y: top - 4, width: RIGHT - LEFT + 12, height: bottom - top + 8 })));
  const band = s("rect", { class: "kl-cl-band", x: LEFT, width: RIGHT - LEFT });
  const target = s("path", { class: "kl-line kl-exact" });
  const [kl, beta] = [s("path", { class: "kl-line kl-policy" }), s("path", { class: "kl-line kl-optimum kl-cl-thin" })];
  const heard = s("path", { class: "kl-cl-told" });
  const settled = s("path", { class: "kl-cl-wide" });
  const says = note("", { y: UPPER_PLOT.bottom - 6 });
  const aim = word("exact", "target", { "text-anchor": "end" });
  aim.classList.add("kl-cl-halo");
  let scales = null;
  let frozen = false; // while something is dragged the scales stand still
  const decades = (value) => `β = ${short(value)}`;
  const grip = (options) => {
    const made = handle({ page: 10 * options.step, ...options });
    set(made.node, {
      pointerdown: ({ button: pressed }) => (frozen = pressed === 0),
      lostpointercapture() {
        frozen = false;
        update(drawn.state, drawn.numbers);
      },
    });
    return made;
  };
  const hands = {
    target: grip({ label: "target KL", min: 0.1, max: 2.5, step: 0.01, shape: s("path", { d: "M-2 -7L-11 0L-2 7Z", class: "kl-marker kl-exact" }), at: ({ y }) => scales.kl.invert(y), change: (value) => alter(model, { target_kl: value }) }),
    start: grip({ label: "KL before the first update", min: 0, max: 2.5, step: 0.01, shape: marker("policy", 6.5), at: ({ y }) => scales.kl.invert(y), change: (value) => alter(model, { start_kl: value }) }),
    first: grip({ label: "first β, in decades", min: -1, max: 1, step: 0.01, shape: marker("optimum", 6.5), at: ({ y }) => Math.log10(scales.beta.invert(y)), change: (value) => alter(model, { start_beta: Number((10 ** value).toPrecision(6)) }) }),
    end: grip({ label: "last β, in decades", min: -1, max: 1, step: 0.01, shape: marker("optimum", 6.5), at: ({ y }) => Math.log10(scales.beta.invert(y)), change: (value) => alter(model, { end_beta: Number((10 ** value).toPrecision(6)) }) }),
  };
  node.append(
    clip, band, klAxis.node, betaAxis.node, timeAxis.node, name, settled, target,
    s("g", { "clip-path": `url(#${id})` }, heard, kl, beta), says, aim, ...Object.values(hands).map((one) => one.node),
  );
  let drawn = null;

  function update(state, numbers) {
    drawn = { state, numbers };
    const { controller, target_kl, start_kl, start_beta, end_beta, updates } = state;
    if (!frozen || !scales) {
      const most = Math.max(target_kl, ...numbers.kl) * 1.04;
      const top = [3, 6, 12, 24, 50, 100, 250, 500, 1000, 2500, 5500].find((value) => value >= most) ?? most;
      const all = controller === "annealed" ? [...numbers.beta, end_beta] : numbers.beta;
      scales = {
        kl: linear([0, top], [UPPER_PLOT.bottom, UPPER_PLOT.top]),
        beta: octaves(all, [LOWER_PLOT.bottom, LOWER_PLOT.top], 2),
        time: null,
      };
      klAxis.update(scales.kl);
      betaAxis.update(scales.beta);
    }
    if (scales.time?.domain[1] !== updates) timeAxis.update((scales.time = linear([0, updates], [LEFT, RIGHT])));
    const { kl: up, beta: tall, time } = scales;
    const inside = (value, by) => clamp(by(value), by.range[1], by.range[0]);
    set(name, { text: controller === "ppo" ? "KL(old ‖ policy)  [nats]" : "KL(policy ‖ ref)  [nats]" });
    const [low, high] = numbers.band.map((value) => inside(value, up));
    set(band, { y: high, height: Math.max(low - high, 0) });
    set(target, { d: `M${LEFT} ${inside(target_kl, up).toFixed(2)}H${RIGHT}` });
    set(kl, { d: path(numbers.kl.map((value, k) => [time(k), up(value)])) });
    set(beta, { d: path(numbers.beta.flatMap((value, k) => [[time(k), tall(value)], [time(k + 1), tall(value)]].slice(0, k < updates ? 2 : 1))) });
    const circle = (x, y, r) => `M${(x - r).toFixed(2)} ${y.toFixed(2)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`;
    const said = numbers.told.map((value, k) => [time(k + 1), up(value)]);
    const listens = FEEDBACK.includes(controller);
    set(heard, { d: !listens ? null : state.noise ? said.map(([x, y]) => circle(x, y, 2.2)).join("") : state.lag ? path(said) : null });
    const found = Number.isFinite(numbers.settled) && numbers.settled > 0;
    set(settled, { d: found ? `M${time(numbers.settled).toFixed(2)} ${UPPER_PLOT.top}V${UPPER_PLOT.bottom}` : null });
    const beyond = time(numbers.settled) > RIGHT - 80;
    set(says, { text: found ? `settled at ${numbers.settled}` : "", x: found ? time(numbers.settled) + (beyond ? -4 : 4) : 0, "text-anchor": beyond ? "end" : "start" });
    place(aim, RIGHT - 14, inside(target_kl, up) + (start_kl > target_kl ? 16 : -9));
    hands.target.update(RIGHT + 2, inside(target_kl, up), target_kl, `${format(target_kl, 2)} nats`);
    hands.start.update(LEFT, inside(start_kl, up), start_kl, start_kl ? `${format(start_kl, 2)} nats` : "0 nats, the reference");
    hands.first.update(LEFT, inside(start_beta, tall), Math.log10(start_beta), decades(start_beta));
    hands.end.update(RIGHT, inside(end_beta, tall), Math.log10(end_beta), decades(end_beta));
    if (controller !== "annealed") hands.end.node.remove();
    else if (!hands.end.node.isConnected) node.append(hands.end.node);
  }
  return { node, update };
}

// What an update leaves of a small error, against the gain, and the point where the loop stands.
function drawLoop(model) {
  const bottom = LOWER_PLOT.bottom;
  const node = chart({ width: WIDTH, height: HEIGHT, interactive: true, label: "The factor by which an error shrinks per update, against the loop gain" });
  const [across, up] = [logarithmic([0.01, 4], [LEFT, RIGHT]), linear([0, 1.6], [bottom, UPPER_PLOT.top])];
  const [xAxis, yAxis] = [axis("x", { at: bottom, title: "loop gain Kη = 2 · 512 / horizon" }), axis("y", { at: LEFT, title: "|z|, what one update leaves of an error", grid: RIGHT - LEFT, count: 4 })];
  xAxis.update(across);
  yAxis.update(up);
  const id = unique("loop");
  const curve = s("path", { class: "kl-line kl-policy" });
  const edges = [["swings_from", "swings", 16], ["grows_from", "never settles", 34]].map(([key, text, below]) => ({ key, line: s("path", { class: "kl-cl-wide" }), label: note(`${text} →`, { y: UPPER_PLOT.top + below }) }));
  const grip = handle({
    label: "loop gain, in decades", min: Math.log10(0.01024), max: 0.61, step: 0.01, vertical: false,
    shape: marker("policy", 8),
    at: ({ x }) => Math.log10(across.invert(x)),
    change: (value) => alter(model, { horizon: clamp(Math.round((ETA * N) / 10 ** value), 256, 100000) }),
  });
  node.append(
    s("clipPath", { id }, s("rect", { x: LEFT, y: UPPER_PLOT.top, width: RIGHT - LEFT, height: bottom - UPPER_PLOT.top })),
    s("rect", { class: "kl-cl-band", x: LEFT, y: UPPER_PLOT.top, width: RIGHT - LEFT, height: up(1) - UPPER_PLOT.top }),
    xAxis.node, yAxis.node, note("errors grow", { x: LEFT + 8, y: up(1) - 7 }), note("errors die out", { x: LEFT + 8, y: bottom - 8 }),
    ...edges.flatMap(({ line, label }) => [line, label]), s("g", { "clip-path": `url(#${id})` }, curve), grip.node,
  );
  const update = (_, numbers) => {
    set(curve, { d: path(numbers.gains.map((gain, i) => [across(gain), clamp(up(numbers.multipliers[i]), -99, 999)])) });
    for (const { key, line, label } of edges) {
      const x = across(numbers[key]);
      const seen = x > LEFT && x < RIGHT + 0.5;
      set(line, { d: seen ? `M${x.toFixed(2)} ${UPPER_PLOT.top}V${bottom}` : null });
      const over = x + 86 > RIGHT;
      set(label, { x: seen ? (over ? x - 4 : x + 4) : 0, "text-anchor": over ? "end" : "start", display: seen ? null : "none" });
    }
    const { loop_gain, multiplier } = numbers;
    grip.update(across(loop_gain), clamp(up(multiplier), UPPER_PLOT.top, bottom), Math.log10(loop_gain), `loop gain ${short(loop_gain)}, leaves ${format(multiplier, 3)} of an error`);
  };
  return { node, update };
}

// KL against β on logarithmic axes: where the policy answers to, where it has been, and what PPO's rule can reach.
function drawPlant() {
  const bottom = LOWER_PLOT.bottom;
  const node = chart({ width: WIDTH, height: HEIGHT, label: "KL against β: the line on which the policy answers, the run, and the band around the target" });
  const [xAxis, yAxis] = [axis("x", { at: bottom, title: "β  [reward per nat]" }), axis("y", { at: LEFT, title: "KL  [nats]", grid: RIGHT - LEFT })];
  const id = unique("plant");
  const [line, target, run] = [s("path", { class: "kl-line kl-reference" }), s("path", { class: "kl-line kl-exact" }), s("path", { class: "kl-line kl-policy kl-cl-thin" })];
  const band = s("rect", { class: "kl-cl-band", x: LEFT, width: RIGHT - LEFT });
  const rungs = OCTAVES.map(() => marker("reference", 5));
  const [end, law] = [s("g", {}, marker("policy", 7)), word("reference", "")];
  node.append(
    s("clipPath", { id }, s("rect", { x: LEFT, y: UPPER_PLOT.top - 6, width: RIGHT - LEFT + 6, height: bottom - UPPER_PLOT.top + 12 })),
    band, xAxis.node, yAxis.node, s("g", { "clip-path": `url(#${id})` }, line, target, run, ...rungs), end, law,
  );
  const update = ({ controller, start_beta, target_kl, rate }, numbers) => {
    const ppo = controller === "ppo";
    const kls = numbers.kl.slice(1);
    const middle = ppo ? start_beta : 1 / Math.sqrt(2 * target_kl);
    const across = octaves([...numbers.beta, middle / 3, middle * 3], [LEFT, RIGHT], 4);
    const up = octaves([...kls, target_kl / 9, target_kl * 9].map((kl) => Math.max(kl, 1e-9)), [bottom, UPPER_PLOT.top], 4);
    xAxis.update(across);
    yAxis.update(up);
    const answer = (beta) => ((ppo ? rate : 1) / beta) ** 2 / 2;
    const ends = across.domain;
    const [low, high] = numbers.band.map(up);
    set(band, { y: high, height: low - high });
    set(target, { d: `M${LEFT} ${up(target_kl).toFixed(2)}H${RIGHT}` });
    set(line, { d: path(ends.map((beta) => [across(beta), up(answer(beta))])) });
    set(run, { d: path(kls.map((kl, k) => [across(numbers.beta[k]), up(kl)])) });
    rungs.forEach((rung, i) => {
      const beta = start_beta * 2 ** OCTAVES[i];
      const rests = numbers.band[0] <= numbers.rungs[i] && numbers.rungs[i] <= numbers.band[1];
      set(rung, { display: ppo ? null : "none", class: `kl-marker kl-${rests ? "optimum" : "reference"}` });
      place(rung, across(beta), up(numbers.rungs[i]));
    });
    const last = kls.length - 1;
    place(end, across(numbers.beta[last]), up(Math.max(kls[last], 1e-9)));
    set(law, { text: ppo ? "½ (ρ/β)²" : "1/(2β²)", x: RIGHT - 6, y: UPPER_PLOT.top + 18, "text-anchor": "end" });
  };
  return { node, update };
}

export default { render };
