// What both parts of the practice page share: elements, formulas, keys.
const PracticeView = (() => {
  const data = JSON.parse(document.getElementById("practice-data").textContent);

  // Attributes: a function is a listener, `text` is the content, `html` our own markup, false leaves it out.
  function h(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") node.addEventListener(name, value);
      else if (name === "text") node.textContent = value;
      else if (name === "html") node.innerHTML = value;
      else if (value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }

  // ---- formulas -------------------------------------------------------------------------------------

  const loaded = new Promise((done) => {
    if (document.readyState === "complete") done();
    else addEventListener("load", done);
  });
  let queue = loaded.then(() => window.MathJax?.startup?.promise);

  // MathJax does one thing at a time.
  function mathjax(act) {
    queue = queue.then(() => window.MathJax && act(MathJax)).catch((error) => console.error(error));
    return queue;
  }

  const typeset = (...nodes) => mathjax((it) => it.typesetPromise(nodes));

  // Replace what a place holds; MathJax forgets the formulas that stood there.
  function swap(place, ...children) {
    const old = [...place.children];
    place.replaceChildren(...children);
    mathjax((it) => it.typesetClear(old));
  }

  // ---- keys -----------------------------------------------------------------------------------------

  const WRITES = "input:not([type=checkbox]), select, textarea, [contenteditable]";
  const PRESSES = "button, a, summary, input, mjx-container"; // have their own use for Space and Enter

  // Keys while the focus is in a place. An action that returns false has not used its key.
  function keys(place, actions) {
    place.addEventListener("keydown", (event) => {
      const { key, target } = event;
      const action = actions[key.toLowerCase()];
      if (!action || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
      if (target.closest(WRITES) || ([" ", "Enter"].includes(key) && target.closest(PRESSES))) return;
      if (action() !== false) event.preventDefault();
    });
  }

  // ---- parts ----------------------------------------------------------------------------------------

  const name = (word) => word.replace("-", "\u2011").replace(/^./, (letter) => letter.toUpperCase());

  const button = (kind, text, key, click) =>
    h("button", { type: "button", class: kind, click }, `${text} `, h("kbd", { text: key }));

  function reread(sections) {
    const links = sections.flatMap(([href, title], i) => [i ? "; " : "", h("a", { href, text: title })]);
    return h("p", { class: "practice-reread" }, "Read again: ", ...links);
  }

  // One line that a screen reader hears when it changes.
  function speaker() {
    const node = h("p", { role: "status", class: "practice-message" });
    return { node, say: (words) => (node.textContent = words) };
  }

  // Give a box the focus, with its beginning on the screen.
  function enter(box) {
    box.focus({ preventScroll: true });
    const { top } = box.getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) box.scrollIntoView();
  }

  return { button, data, enter, h, keys, name, reread, speaker, swap, typeset };
})();
