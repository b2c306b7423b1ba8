// What Bokeh does not link by itself: colors of the maps, neighbors of an item, search, pairs of classes, tables.
"use strict";
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const KINDS = ["own class", "related class", "other class"], SHOWN = 24, NAMED = 30;
  const MARKERS = ["circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "plus"];
  const related = Uint8Array.from(atob(data.related), (c) => c.charCodeAt(0)); // [C, C] percent
  const count = data.classes.length;
  const place = new Map(data.shown.map((item, i) => [item, i])); // item -> its place on the maps
  let doc, items, night = dark.matches, current = 0, listed = [];
  const kind = (a, b) => (a === b ? 0 : related[a * count + b] > 0 ? 1 : 2);
  const nameOf = (item) => data.classes[data.label[item]];
  // children that are texts become text nodes: no name is ever markup
  function make(tag, name, ...children) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  }
  function look(item) {
    if (!(item in data.thumbnails)) return make("span", "words", data.texts[item] ?? `${data.word} ${item}`);
    const image = make("img", data.pixelated ? "pixelated" : "");
    image.src = `data:image/webp;base64,${data.thumbnails[item]}`;
    image.alt = `${data.word} ${item}`;
    return image;
  }
  // an item that is on the maps is a button that makes it the query
  function card(item, frame, note) {
    const at = place.get(item);
    const shown = make(at === undefined ? "span" : "button", `card ${frame}`, look(item), make("b", "", nameOf(item)));
    if (note) shown.append(make("small", "", note));
    if (at !== undefined) shown.onclick = () => pick([at]);
    return shown;
  }
  function describe(item) {
    const group = data.groups.length ? ` (${data.groups[data.groupOf[data.label[item]]]})` : "";
    return `${data.word} ${item}, ${nameOf(item)}${group}`;
  }

  // ---- the item whose neighbors are shown
  function show(at) {
    current = at;
    const item = data.shown[at], label = data.label[item], k = data.k;
    $("query").replaceChildren(card(item, "query", ""), make("p", "", describe(item)));
    data.encoders.forEach((encoder, e) => {
      const row = $(`neighbors-${e}`), begin = at * k;
      row.replaceChildren(...data.nearest[e].slice(begin, begin + k).map((other, n) => {
        const of = kind(label, data.label[other]);
        return card(other, `kind${of}`, `${(data.cosines[e][begin + n] / 1000).toFixed(2)} · ${KINDS[of]}`);
      }));
      const ap = data.ap[e][at];
      $(`ap-${e}`).textContent = ap < 0 ? "alone in its class" : `average precision ${ap.toFixed(1)}`;
    });
    if ($("color").value === "rank") color();
  }

  // ---- maps
  const pick = (places) => { items.selected.indices = places; };
  function onSelect(places) {
    $("selected").textContent = places.length ? `${places.length} selected` : "";
    if (!places.length) return;
    if (places.length > 1) {
      [listed, $("list").value] = [places, "selection"];
      fill(places);
    }
    show(places[0]);
  }
  function color() {
    const palette = data.palette[night ? "dark" : "light"], mode = $("color").value;
    const own = data.label[data.shown[current]];
    const names = { rank: KINDS, superclass: data.groups }[mode] ?? data.classes;
    const cycle = mode === "rank" ? palette.kinds : palette.classes;
    const marker = (number) => MARKERS[Math.floor(number / cycle.length) % MARKERS.length];
    const numbers = data.shown.map((item) => data.label[item])
      .map((label) => ({ rank: kind(own, label), superclass: data.groupOf[label] }[mode] ?? label));
    items.data = { ...items.data, color: numbers.map((n) => cycle[n % cycle.length]), marker: numbers.map(marker) };
    $("legend").replaceChildren(...(names.length > NAMED ? [] : names.map((name, n) => {
      const mark = make("span", "swatch");
      mark.style.background = cycle[n % cycle.length];
      return make("li", "", mark, n < cycle.length ? name : `${name} (${marker(n)})`);
    })));
    $("rank-of").textContent = mode === "rank" ? `ranks to ${data.classes[own]}` : "";
  }
  function onHover(found) {
    const at = found.index.indices[0], box = $("hover");
    box.hidden = at === undefined;
    if (!box.hidden) box.replaceChildren(look(data.shown[at]), make("p", "", describe(data.shown[at])));
  }
  const placesOf = (...labels) => data.shown.flatMap((item, at) => (labels.includes(data.label[item]) ? [at] : []));
  function search() {
    const wanted = $("search").value.trim().toLowerCase();
    const names = data.classes.map((name) => name.toLowerCase());
    const found = [names.indexOf(wanted), names.findIndex((name) => name.includes(wanted))].find((at) => at >= 0);
    if (!wanted) return pick([]);
    if (found === undefined) { $("selected").textContent = "no class of this name"; return; }
    pick(placesOf(found));
  }

  // ---- lists of items to choose from
  function fill(places) {
    $("queries").replaceChildren(...places.slice(0, SHOWN).map((at) => card(data.shown[at], "", "")));
    $("more").textContent = places.length > SHOWN ? `${SHOWN} of ${places.length} are shown` : "";
  }
  function choose() {
    const name = $("list").value, all = data.shown.map((_, at) => at);
    const by = (values, sign) => all.filter((at) => values[at] >= 0).sort((a, b) => sign * (values[a] - values[b]));
    if (name === "random") fill(by(all.map(Math.random), 1).slice(0, SHOWN));
    else if (name === "disagreement") fill(by(data.disagreement, -1).slice(0, SHOWN));
    else if (name === "selection") fill(listed);
    else fill(by(data.ap[Number(name)], 1).slice(0, SHOWN));
  }

  // ---- pairs of classes
  function table(name) {
    const shown = doc.get_model_by_name(name);
    return shown.renderers.find((renderer) => renderer.name === "table").data_source.data.image[0];
  }
  function onPair(event, what) {
    const n = data.matrix.length, row = Math.floor(event.y), column = Math.floor(event.x);
    if (!(row >= 0 && row < n && column >= 0 && column < n)) return;
    const pair = [data.matrix[row], data.matrix[column]];
    const values = data.tables.map((title, i) => `${title} ${table(`matrix ${i}`)[row * n + column].toFixed(2)}`);
    $("pair").textContent = `${data.classes[pair[0]]} and ${data.classes[pair[1]]}: ${values.join(", ")}`;
    if (what === "tap") showPair(...pair);
  }
  function showPair(a, b) {
    pick(placesOf(a, b));
    $("map").scrollIntoView();
  }

  // ---- tables
  function sort(button) {
    const head = button.closest("th"), column = [...head.parentNode.children].indexOf(head);
    const down = head.ariaSort !== "descending", body = head.closest("table").tBodies[0];
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)], numbers = [Number(x), Number(y)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is unknown comes last
      const rising = numbers.some(Number.isNaN) ? x.localeCompare(y) : numbers[0] - numbers[1];
      return down ? -rising : rising;
    };
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...[...body.rows].sort(order));
  }
  function compare() {
    const [a, b, measure] = ["first", "second", "measure"].map((id) => $(id).value);
    for (const row of $("classes-table").tBodies[0].rows) {
      const [x, y] = [a, b].map((e) => row.querySelector(`[data-column="${measure} ${e}"]`).dataset.value);
      const cell = row.querySelector(".difference"), known = x !== "" && y !== "";
      cell.dataset.value = known ? x - y : "";
      cell.textContent = known ? `${x - y >= 0 ? "+" : ""}${(x - y).toFixed(1)}` : "-";
    }
  }

  // ---- colors of the system, and of paper
  function theme(isDark) {
    night = isDark;
    const ink = isDark ? "#d6d9de" : "#30343a", grid = isDark ? "#3a3f47" : "#e2e4e8";
    for (const shown of doc.roots()) {
      for (const axis of [...shown.below, ...shown.left])
        for (const part of ["axis_label_text", "major_label_text", "axis_line", "major_tick_line", "minor_tick_line"])
          axis[`${part}_color`] = ink;
      for (const part of shown.center) // grids, and legends
        Object.assign(part, "label_text_color" in part ? { label_text_color: ink } : { grid_line_color: grid });
    }
    color();
  }
  async function start() {
    await Bokeh.embed.embed_items(data.document, data.roots);
    doc = Bokeh.documents[0];
    items = doc.get_model_by_name("items");
    theme(dark.matches);
    dark.addEventListener("change", () => theme(dark.matches));
    addEventListener("beforeprint", () => theme(false));
    addEventListener("afterprint", () => theme(dark.matches));
    addEventListener("mousemove", (event) => {
      const box = $("hover"), right = event.clientX > innerWidth / 2;
      box.style.top = `${Math.min(event.clientY + 12, innerHeight - 150)}px`;
      box.style.left = `${event.clientX + (right ? -box.offsetWidth - 12 : 12)}px`;
    });
    [$("color").onchange, $("search").onchange] = [color, search];
    $("list").onchange = $("again").onclick = choose;
    for (const button of document.querySelectorAll("th button")) button.onclick = () => sort(button);
    for (const button of document.querySelectorAll("[data-pair]"))
      button.onclick = () => showPair(...button.dataset.pair.split(" ").map(Number));
    for (const id of ["first", "second", "measure"]) if ($(id)) $(id).onchange = compare;
    if ($("first")) compare();
    choose();
    show(0);
    document.body.dataset.ready = "yes";
  }

  addEventListener("DOMContentLoaded", start);
  return { onSelect, onHover, onPair };
})();
