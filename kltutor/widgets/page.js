// In a page without a kernel: run each widget's module, as anywidget would, when it comes near the screen.
(() => {
  const modules = {};

  // A module from text: on file:// a browser refuses modules that are files.
  function load(name) {
    const text = document.getElementById(`kl-source-${name}`).textContent;
    modules[name] ??= import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    return modules[name];
  }

  // The part of anywidget's model that modules use.
  function makeModel(state) {
    const listeners = {};
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
    // Set several at once, then tell each listener once.
    function update(values) {
      const changed = Object.keys(values).filter((name) => !same(state[name], values[name]));
      Object.assign(state, values);
      for (const call of new Set(changed.flatMap((name) => [...(listeners[`change:${name}`] ?? [])]))) call();
    }
    return {
      get: (name) => state[name],
      set: (name, value) => update({ [name]: value }),
      update,
      save_changes() {},
      on: (event, call) => (listeners[event] ??= new Set()).add(call),
      off: (event, call) => listeners[event]?.delete(call),
    };
  }

  async function mount(place) {
    const model = makeModel(JSON.parse(place.dataset.state));
    const el = document.createElement("div");
    const module = await load(place.dataset.widget);
    await module.default.render({ model, el });
    place.replaceChildren(el);
    place.dataset.mounted = "";
    place.model = model; // so that a console, or a test, can set the state
    // The static figure stays for print; on the screen the widget shows the same and more.
    const next = place.closest(".cell")?.nextElementSibling;
    if (next?.classList.contains("tag_widget-figure")) next.classList.add("kl-replaced");
  }

  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        mount(target).catch((error) => console.error(`widget ${target.dataset.widget}:`, error));
      }
    },
    { rootMargin: "400px" },
  );
  for (const place of document.querySelectorAll(".kl-widget[data-widget]")) near.observe(place);
})();
