import {
  axis, change, chart, clamp, experiments, fill, follow, format, h, handle, html, linear, marker, path, place, s, set,
  slider, table,
} from "./kit.js";

// ---- arithmetic: the same numbers as kl_fit.py ---------------------------------------------------------

const GRID = Float64Array.from({ length: 401 }, (_, i) => (i - 200) / 10);
const STEP = 0.1;
const DRAWN = [128, 273];
const MEANS = Array.from({ length: 49 }, (_, i) => (i - 24) * 0.3); // three grid steps apart
const SDS = Array.from({ length: 23 }, (_, i) => 0.6 + i / 5);
const zeroed = (mean) => (Math.abs(mean) < 5e-10 ? 0 : mean); // rounding noise, which would be written −0.000
const added = (values) => values.reduce((total, value) => total + value, 0);

function normalise(scores) {
  const top = Math.max(...scores);
  const total = top + Math.log(scores.reduce((sum, score) => sum + Math.exp(score - top), 0));
  return scores.map((score) => score - total);
}

const gaussian = (mean, sd) => normalise(GRID.map((x) => -(((x - mean) / sd) ** 2) / 2));

const mixture = ([a, b], weight) =>
  normalise(
    GRID.map((x) => {
      const [u, v] = [Math.log(weight) - (x - a) ** 2 / 2, Math.log1p(-weight) - (x - b) ** 2 / 2];
      return Math.max(u, v) + Math.log1p(Math.exp(-Math.abs(u - v)));
    }),
  );

const density = (logp) => Array.from(logp.slice(...DRAWN), (value) => Math.exp(value) / STEP);
const kl = (p, q) => p.reduce((sum, value, i) => sum + Math.exp(value) * (value - q[i]), 0);

// D_α(p ‖ q) at a Gaussian q, with gradient and Hessian in (mean/sd, log sd), from sums of powers of z. With
// g = ∂D/∂log q the gradient is Σ g·(slopes of the scores −z²/2, which are z and z², less their means under q).
// As those have mean 0 under q, a multiple of q may be added to g: of q/α there is left a g with a limit at α = 0.
const bell = new Float64Array(GRID.length);
function divergence(p, alpha, mean, log_sd) {
  const [sd, n] = [Math.exp(log_sd), GRID.length];
  let total = 0;
  for (let i = 0; i < n; i++) total += bell[i] = Math.exp(-(((GRID[i] - mean) / sd) ** 2) / 2);
  const size = Math.log(total);
  const [G, D, Q] = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]];
  let sum = 0;
  for (let i = 0; i < n; i++) {
    const z = (GRID[i] - mean) / sd;
    const mass = bell[i] / total;
    const logq = (-z * z) / 2 - size;
    const both = alpha === 0 ? mass : Math.exp((1 - alpha) * logq + alpha * p[i]);
    const g = alpha === 0 ? mass * (logq - p[i]) : (mass - both) / alpha;
    sum += alpha === 0 ? g : both;
    for (let k = 0, power = 1; k < 5; k++, power *= z) {
      G[k] += g * power;
      D[k] += (g + both) * power; // ∂g/∂log q
      Q[k] += mass * power;
    }
  }
  const [a, b] = [G[1] - G[0] * Q[1], G[2] - G[0] * Q[2]];
  return {
    value: alpha === 0 ? sum : (1 - sum) / (alpha * (1 - alpha)),
    gradient: [a, b],
    hessian: [
      D[2] - 2 * D[1] * Q[1] + D[0] * Q[1] ** 2 - G[0] * (Q[2] - Q[1] ** 2),
      D[3] - D[1] * Q[2] - D[2] * Q[1] + D[0] * Q[1] * Q[2] - 2 * a - G[0] * (Q[3] - Q[1] * Q[2]),
      D[4] - 2 * D[2] * Q[2] + D[0] * Q[2] ** 2 - 2 * b - G[0] * (Q[4] - Q[2] ** 2),
    ],
  };
}

// Eigenvalues of a symmetric matrix [a, b; b, c], and the turn to its axes.
function axes([a, b, c]) {
  const [half, turn] = [Math.hypot((a - c) / 2, b), Math.atan2(2 * b, a - c) / 2];
  return { values: [(a + c) / 2 + half, (a + c) / 2 - half], cos: Math.cos(turn), sin: Math.sin(turn) };
}

// Down from a start to where the gradient vanishes: Newton's step where the surface is convex, its mirror image
// where it is not, halved until it descends.
function descend(p, alpha, mean, log_sd) {
  let here = divergence(p, alpha, mean, log_sd);
  for (let round = 0, length = 1; round < 80 && length > 1e-9; round++) {
    const { values, cos, sin } = axes(here.hessian);
    const [a, b] = here.gradient;
    const slopes = [cos * a + sin * b, cos * b - sin * a];
    const [u, v] = slopes.map((slope, i) => -slope / Math.max(Math.abs(values[i]), 1e-9));
    const falls = u * slopes[0] + v * slopes[1];
    length = Math.hypot(u, v);
    for (let size = Math.min(1, 0.7 / length); ; size /= 2) {
      const to = [mean + size * Math.exp(log_sd) * (cos * u - sin * v), log_sd + size * (sin * u + cos * v)];
      const there = divergence(p, alpha, ...to);
      if (there.value > here.value + 1e-4 * size * falls && falls < -1e-12 && size > 1e-9) continue; // below is noise
      [mean, log_sd, here] = [...to, there];
      break;
    }
  }
  return { mean: zeroed(mean), sd: Math.exp(log_sd), ...here };
}

// Every local minimum, the best first: where the paths down from both modes and from the forward fit end.
function fits(p, alpha, starts) {
  const found = [];
  for (const [mean, sd] of starts) {
    const fit = descend(p, alpha, mean, Math.log(sd));
    const flat = Math.max(...fit.gradient.map(Math.abs)) < 1e-7;
    const fresh = found.every((old) => Math.abs(old.mean - fit.mean) + Math.abs(old.sd - fit.sd) > 1e-3);
    if (flat && fresh && axes(fit.hessian).values[1] > 1e-6) found.push(fit);
  }
  const rank = ({ value }) => Math.round(value * 1e9);
  return found.sort((a, b) => rank(a) - rank(b) || a.mean - b.mean);
}

// What the map needs of a Gaussian before any target is known: log of its sum over the grid, and Σ q log q.
let known = null;
const prepare = () =>
  (known ??= SDS.map((sd) =>
    MEANS.map((mean) => {
      const squares = GRID.map((x) => ((x - mean) / sd) ** 2);
      const size = Math.log(added(squares.map((square) => Math.exp(-square / 2))));
      return { size, own: -added(squares.map((square) => (Math.exp(-square / 2 - size) * square) / 2)) - size };
    }),
  ));

// D_α on the map. Means lie on grid points, so that one bell serves all columns of a row.
function surface(p, alpha, forward) {
  const own = -added(p.map((value) => value * Math.exp(value)));
  const weights = p.map((value) => (alpha === 0 ? value : Math.exp(alpha * value)));
  return prepare().map((row, j) => {
    const sd = SDS[j];
    const reach = Math.min(400, Math.ceil((90 * sd) / Math.sqrt(1 - alpha))); // beyond 9 sd it is below 1e-17
    const falling = Array.from({ length: reach + 1 }, (_, i) => Math.exp(((alpha - 1) / 2) * ((i / 10) / sd) ** 2));
    return row.map(({ size, own: negentropy }, k) => {
      if (alpha === 1) return size - own + (forward.sd ** 2 + (forward.mean - MEANS[k]) ** 2) / (2 * sd ** 2);
      const middle = 128 + 3 * k;
      let sum = 0;
      for (let i = Math.max(0, middle - reach); i < middle; i++) sum += falling[middle - i] * weights[i];
      for (let i = middle; i <= Math.min(400, middle + reach); i++) sum += falling[i - middle] * weights[i];
      if (alpha === 0) return negentropy - sum * Math.exp(-size);
      return (1 - sum * Math.exp((alpha - 1) * size)) / (alpha * (1 - alpha));
    });
  });
}

export function compute({ modes, weight, alpha }) {
  const p = mixture(modes, weight);
  const mass = p.map(Math.exp);
  const mean = added(mass.map((m, i) => m * GRID[i]));
  const sd = Math.sqrt(added(mass.map((m, i) => m * (GRID[i] - mean) ** 2)));
  const starts = [[modes[0], 1], [modes[1], 1], [mean, sd]];
  const shown = (fit) => ({ ...fit, logq: gaussian(fit.mean, fit.sd) });
  const forward = shown({ mean: zeroed(mean), sd });
  forward.value = kl(p, forward.logq);
  const reverse = fits(p, 0, starts).map(shown);
  const between = alpha === 0 ? reverse : alpha === 1 ? [forward] : fits(p, alpha, starts).map(shown);
  const part = (at, share) => density(gaussian(at, 1)).map((value) => share * value);
  const each = (found, key) => found.map((fit) => fit[key]);
  return {
    distance: Math.abs(modes[1] - modes[0]),
    weight_b: 1 - weight,
    forward_mean: forward.mean,
    forward_sd: sd,
    forward_kl: forward.value,
    forward_other_kl: kl(forward.logq, p),
    reverse_count: reverse.length,
    reverse_mean: each(reverse, "mean"),
    reverse_sd: each(reverse, "sd"),
    reverse_kl: each(reverse, "value"),
    reverse_other_kl: reverse.map((fit) => kl(p, fit.logq)),
    alpha_count: between.length,
    alpha_mean: each(between, "mean"),
    alpha_sd: each(between, "sd"),
    alpha_value: each(between, "value"),
    alone_a: -Math.log(weight),
    alone_b: -Math.log1p(-weight),
    a_density: part(modes[0], weight),
    b_density: part(modes[1], 1 - weight),
    target_density: density(p),
    forward_density: density(forward.logq),
    reverse_density: each(reverse, "logq").map(density),
    alpha_density: each(between, "logq").map(density),
    landscape: surface(p, alpha, forward),
  };
}

// ---- drawing -------------------------------------------------------------------------------------------

const [LEFT, RIGHT, BOTTOM, HEIGHT] = [38, 334, 246, 312];
const across = linear([-7.2, 7.2], [LEFT, RIGHT]);
const ROLES = ["forward", "policy", "k3"]; // α has no role of its own
const PLACE = { min: -4, max: 4, step: 0.01, page: 0.25 };
const SHARE = { min: 0.05, max: 0.95, step: 0.01 };
const PLACES = Array.from(GRID.slice(...DRAWN), across);
const RISES = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1, 1.5, 2.5, 4, 7, 12]; // contours, above the lowest

const TRY = [
  {
    title: "“Mode seeking” waits.",
    text:
      "The modes are 5.5 sd apart, and yet the best reverse fit lies over both, with sd 2.57: 0.648 nats against " +
      "0.683 for a narrow one. Drag a mode outwards: past 5.60 sd it drops onto a mode. Push " +
      "them together: below 4.83 sd the narrow optima are gone.",
    state: { alpha: 0, modes: [-2.75, 2.75], weight: 0.5 },
  },
  {
    title: "The forward fit reads two numbers.",
    text:
      "A holds 0.2 at −4 and B 0.8 at 1. Now put A at −2 and B at 2 with equal shares: another shape, and the forward " +
      "fit is where it was, for the mean is still 0 and the variance still 5. The reverse fit goes from sd 1.04 on B " +
      "to sd 2.05 in the middle.",
    state: { alpha: 0.5, modes: [-4, 1], weight: 0.2 },
  },
  {
    title: "Between the two lies a jump.",
    text:
      "The modes are 6 sd apart. Move α from 1 to 0: the best fit narrows from sd 3.16 to 2.85, and below α = 0.12 " +
      "it drops onto a mode, to sd 1.03. No order has a best fit in between. The narrow optima are there from α = 0.46 down.",
    state: { alpha: 0.3, modes: [-3, 3], weight: 0.5 },
  },
];

const FORMULA = `
<p><span class="kl-word kl-forward">Forward</span> KL(<var>p</var> ‖ <var>q</var>) is least where the moments agree: mean =
<span class="kl-live" data-mean></span> = <output data-number="forward_mean" data-digits="2"></output>, variance =
<span class="kl-live" data-variance></span>, so sd = <output data-number="forward_sd" data-digits="2"></output>, at
<output data-number="forward_kl"></output> nats.</p>
<p><span class="kl-word kl-policy">Reverse</span> KL(<var>q</var> ‖ <var>p</var>) = E<sub><var>q</var></sub>[log <var>q</var> − log
<var>p</var>] has <output data-number="reverse_count" data-digits="0"></output> local <span data-optima></span>. Best: mean
<output data-number="reverse_mean.0" data-digits="2"></output>, sd <output data-number="reverse_sd.0" data-digits="2"></output>, at
<output data-number="reverse_kl.0"></output> nats. A far mode alone costs −log of its share: A
<output data-number="alone_a"></output>, B <output data-number="alone_b"></output>.</p>
<p><span class="kl-word kl-k3">Between</span>, <var>D</var><sub>α</sub> = (1 − ∫ <var>p</var><sup>α</sup> <var>q</var><sup>1−α</sup>) / (α(1 − α)) at
α = <span class="kl-live" data-alpha></span> is best at mean <output data-number="alpha_mean.0" data-digits="2"></output>, sd
<output data-number="alpha_sd.0" data-digits="2"></output>: <output data-number="alpha_value.0"></output>, without a unit.</p>`;

function render({ model, el }) {
  const shared = { min: 0, max: 1, step: 0.01, change: (value) => change(model, { alpha: clamp(value, 0, 1) }) };
  const order = slider({ ...shared, label: "α: from 0, reverse, to 1, forward", spoken: (value) => `α = ${format(value, 2)}` });
  const share = slider({
    label: "share of A",
    ...SHARE,
    spoken: (value) => `A ${format(value, 2)}, B ${format(1 - value, 2)}`,
    change: (value) => change(model, { weight: value }),
  });
  const left = drawDensities(model);
  const right = drawMap();
  const formula = h("div", { class: "kl-formula" }, html(FORMULA));
  const data = table("Each fit q of the target p: both KLs in nats, and D_α without a unit", [
    "fit", "mean", "sd", "KL(p ‖ q)", "KL(q ‖ p)", "D_α(p ‖ q)",
  ]);
  const figure = (picture, markup, control) => h("figure", {}, picture, h("figcaption", {}, html(markup)), control);
  el.classList.add("kl-root");
  el.append(
    h(
      "div",
      { class: "kl-panels" },
      figure(left.node, "Drag A and B: sideways they move, upwards they take weight.", share.node),
      figure(right.node, "Every Gaussian is a point here. Contours: <var>D</var><sub>α</sub>. Hollow: only local optima.", order.node),
    ),
    formula,
    experiments(model, TRY),
    data.node,
  );
  return follow(model, ["alpha", "modes", "weight"], (state) => {
    const { alpha, modes, weight } = state;
    const numbers = compute(state);
    order.update(alpha);
    share.update(weight);
    left.update(state, numbers);
    right.update(numbers);
    fill(formula, numbers);
    const live = (name, text) => set(formula.querySelector(`[data-${name}]`), { text });
    const [a, b, u, v] = [weight, 1 - weight, ...modes].map((value) => format(value, 2));
    live("mean", `${a} · (${u}) + ${b} · (${v})`);
    live("variance", `1 + ${a} · ${b} · ${format(numbers.distance, 2)}²`);
    live("optima", numbers.reverse_count === 1 ? "optimum" : "optima");
    live("alpha", format(alpha, 2));
    data.update([
      ["forward", numbers.forward_mean, numbers.forward_sd, numbers.forward_kl, numbers.forward_other_kl, ""],
      ...numbers.reverse_mean.map((mean, i) => [
        `reverse ${i + 1}`, mean, numbers.reverse_sd[i], numbers.reverse_other_kl[i], numbers.reverse_kl[i], "",
      ]),
      ...numbers.alpha_mean.map((mean, i) => [`α ${i + 1}`, mean, numbers.alpha_sd[i], "", "", numbers.alpha_value[i]]),
    ]);
  });
}

// Two axes and the names of what is drawn, each with its sample.
function frame(node, up, xTitle, yTitle, grid, samples) {
  const x = axis("x", { at: BOTTOM, title: xTitle });
  const y = axis("y", { at: LEFT, title: yTitle, grid, count: grid ? 4 : 5 });
  x.update(across);
  y.update(up);
  node.append(x.node, y.node);
  ["forward", "reverse", "α"].forEach((name, i) => {
    const at = LEFT + 22 + 100 * i;
    const text = s("text", { x: at + 20, y: HEIGHT - 12, class: `kl-word kl-${ROLES[i]}`, text: name });
    node.append(s("g", { transform: `translate(${at} ${HEIGHT - 16})` }, samples(ROLES[i])), text);
  });
}

const tied = (values) => values.map((value) => value < values[0] + 1e-7); // mirror images are equally good

// The target and its fits; A and B can be taken by their peaks.
function drawDensities(model) {
  const label = "Density of the target, and of its forward fit, its reverse fits and the best alpha fit";
  const node = chart({ height: HEIGHT, interactive: true, label });
  const up = linear([0, 0.42], [BOTTOM, 26]);
  const line = (role) => s("path", { class: `kl-line kl-${role}` });
  frame(node, up, "x  [sd of a mode]", "density", RIGHT - LEFT, (role) => set(line(role), { d: "M-14 0H14" }));
  const target = s("path", { class: "kl-target" });
  const parts = [line("part"), line("part")];
  const [reverse, forward, between] = [[0, 1, 2].map(() => line("policy")), line("forward"), line("k3")];
  const grips = ["A", "B"].map((name, i) => {
    const letter = s("text", { y: 4, "text-anchor": "middle", text: name, class: "kl-letter" });
    let hand = null; // where the pointer is, when it is one that moves the mode
    return handle({
      label: `place of ${name}`,
      ...PLACE,
      vertical: false,
      shape: s("g", {}, s("circle", { r: 9, class: "kl-peak" }), letter),
      at: (point) => across.invert((hand = point).x),
      change(value) {
        const moved = { modes: model.get("modes").map((old, j) => (j === i ? value : old)) };
        const taken = hand && clamp(Math.round(up.invert(hand.y) * 250) / 100, SHARE.min, SHARE.max);
        hand = null;
        change(model, taken === null ? moved : { ...moved, weight: i ? Number((1 - taken).toFixed(2)) : taken });
      },
    });
  });
  node.append(target, ...parts, ...reverse, forward, between, ...grips.map((grip) => grip.node));
  const update = ({ modes, weight }, numbers) => {
    const draw = (curve, values = []) => set(curve, { d: path(values.map((value, i) => [PLACES[i], up(value)])) });
    draw(target, numbers.target_density);
    draw(forward, numbers.forward_density);
    draw(between, numbers.alpha_density[0]);
    const best = tied(numbers.reverse_kl);
    reverse.forEach((curve, i) => {
      draw(curve, numbers.reverse_density[i]);
      curve.classList.toggle("kl-lesser", !best[i]);
    });
    [weight, 1 - weight].forEach((share, i) => {
      draw(parts[i], [numbers.a_density, numbers.b_density][i]);
      grips[i].update(across(modes[i]), up(0.4 * share), modes[i], `${format(modes[i], 2)}, share ${format(share, 2)}`);
    });
  };
  return { node, update };
}

// Mean and sd of a Gaussian as a plane: contours of D_α, and where the fits lie.
function drawMap() {
  const label = "Contours of D_α over mean and sd of a Gaussian, with the forward fit, the reverse fits and the alpha fits";
  const node = chart({ height: HEIGHT, label });
  const up = linear([SDS[0], SDS.at(-1)], [BOTTOM, 26]);
  const square = () => s("path", { d: "M-7 -7H7V7H-7Z", class: "kl-square" });
  const spot = (role) => s("g", { class: "kl-best" }, role === "forward" ? square() : marker(role, role === "k3" ? 5 : 7));
  frame(node, up, "mean of q  [sd of a mode]", "sd of q", 0, spot);
  const contours = RISES.map((_, i) => s("path", { class: "kl-contour", opacity: 1 - i / 18 }));
  const [forward, ...others] = ["forward", "policy", "policy", "policy", "k3", "k3", "k3"].map(spot);
  node.append(...contours, forward, ...others);
  const update = (numbers) => {
    RISES.forEach((rise, i) => set(contours[i], { d: contour(numbers.landscape, numbers.alpha_value[0] + rise, up) }));
    place(forward, across(numbers.forward_mean), up(numbers.forward_sd));
    const best = { reverse: tied(numbers.reverse_kl), alpha: tied(numbers.alpha_value) };
    others.forEach((node, n) => {
      const [name, i] = [n < 3 ? "reverse" : "alpha", n % 3];
      const there = i < best[name].length;
      set(node, { visibility: there ? null : "hidden", class: best[name][i] ? "kl-best" : "kl-local" });
      if (there) place(node, across(numbers[`${name}_mean`][i]), up(numbers[`${name}_sd`][i]));
    });
  };
  return { node, update };
}

// A line of one height through the map: in each cell, from where it crosses one side to where it crosses another.
function contour(map, height, up) {
  let data = "";
  for (let j = 0; j + 1 < SDS.length; j++) {
    for (let k = 0; k + 1 < MEANS.length; k++) {
      const corners = [[j, k], [j, k + 1], [j + 1, k + 1], [j + 1, k]];
      const above = corners.map(([y, x]) => map[y][x] > height);
      if (above.every((one) => one === above[0])) continue;
      const ends = [];
      for (let side = 0; side < 4; side++) {
        const [[y, x], [v, u]] = [corners[side], corners[(side + 1) % 4]];
        if (map[y][x] > height === map[v][u] > height) continue;
        const t = (height - map[y][x]) / (map[v][u] - map[y][x]);
        ends.push(`${across(MEANS[x] + t * (MEANS[u] - MEANS[x])).toFixed(1)} ${up(SDS[y] + t * (SDS[v] - SDS[y])).toFixed(1)}`);
      }
      for (let i = 0; i + 1 < ends.length; i += 2) data += `M${ends[i]}L${ends[i + 1]}`;
    }
  }
  return data;
}

export default { render };
