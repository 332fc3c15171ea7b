// The exported gallery: search, filter and sort on its index page; keys, heat maps and their opacity on all pages.
"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const kept = (key, value) => {
    // Browsers may deny storage to pages opened from disk: the slider then resets on each page.
    try { return value === undefined ? sessionStorage.getItem(key) : sessionStorage.setItem(key, value); } catch { return null; }
  };
  const opacity = by("opacity");
  const see = () => document.documentElement.style.setProperty("--heat", opacity.value / 100);
  opacity.value = kept("saev-heat") ?? opacity.value;
  opacity.addEventListener("input", () => { see(); kept("saev-heat", opacity.value); });
  see();

  document.addEventListener("click", (event) => {
    const heats = event.target.closest("[data-heats]"), frame = event.target.closest("button.frame");
    if (heats) {
      const show = heats.getAttribute("aria-pressed") !== "true";
      heats.setAttribute("aria-pressed", show);
      heats.textContent = show ? "Hide heat maps" : "Show heat maps";
      for (const map of document.querySelectorAll("img[data-src]")) {
        if (show && !map.src) map.src = map.dataset.src;
        map.hidden = !show;
      }
    } else if (frame) frame.classList.toggle("bare");
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const where = { n: "next", j: "next", p: "previous", k: "previous" }[event.key];
    if (where) by(where)?.click();
    if (event.key === "/" && by("search")) { event.preventDefault(); by("search").focus(); }
  });

  if (!by("data")) return;
  const { columns, rows } = JSON.parse(by("data").textContent);
  const cards = [...by("cards").children];
  const column = (name) => {
    const fitting = columns.includes(name) ? [name] : columns.filter((key) => key.startsWith(name));
    if (fitting.length !== 1) throw new Error(`Unknown column ${name}; choose one of ${columns.join(", ")}.`);
    return columns.indexOf(fitting[0]);
  };
  const compare = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b };
  const test = (word) => {
    const asked = /^(\w+)(<=|>=|<|>)([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(%?)$/.exec(word);
    if (asked) {
      const at = column(asked[1]), bound = asked[3] / (asked[4] ? 100 : 1);
      return (row) => row.numbers[at] !== null && compare[asked[2]](row.numbers[at], bound);
    }
    if (/^#?\d+$/.test(word)) return (row) => row.id === +word.replace("#", "");
    const plain = word.replaceAll('"', "");
    return (row) => row.text.includes(plain);
  };
  const apply = () => {
    let tests = [];
    by("wrong").textContent = "";
    try { tests = (by("search").value.toLowerCase().match(/"[^"]*"?|\S+/g) ?? []).map(test); }
    catch (error) { by("wrong").textContent = error.message; }
    const key = by("sort").value, sign = by("ascending").checked ? 1 : -1;
    const value = (i) => (key === "id" ? rows[i].id : rows[i].numbers[+key]);
    const order = rows.map((_, i) => i);
    if (key !== "order") {
      order.sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === null || y === null) return (x === null) - (y === null); // those without a value come last
        return sign * (x - y) || a - b;
      });
    }
    by("ascending").disabled = key === "order";
    let n = 0;
    for (const i of order) {
      const fits = tests.every((each) => each(rows[i]));
      n += fits;
      cards[i].hidden = !fits;
    }
    by("cards").append(...order.map((i) => cards[i]));
    by("count").textContent = n === rows.length ? `${n} features` : `${n} of ${rows.length} features`;
    by("none").hidden = n > 0;
  };
  for (const id of ["search", "sort", "ascending"]) by(id).addEventListener("input", apply);
  addEventListener("pageshow", apply); // after going back, the browser restores the inputs
  apply();
})();
