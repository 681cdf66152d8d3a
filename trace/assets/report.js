// The report's explorer: filters, sorts and draws the questions that the page carries as data.
// Everything a model or a user wrote is set as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("items").textContent);
  const PAGE = 30;
  const SVG = "http://www.w3.org/2000/svg";
  const heat = data.heat.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
  const measures = data.measures;
  const byId = (id) => document.getElementById(id);

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "class") element.className = value;
      else if (name === "style") element.style.cssText = value;
      else element[name] = value;
    }
    element.append(...children.filter((child) => child !== null && child !== ""));
    return element;
  }
  function svg(tag, attributes, ...children) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const percent = (value) => (value === null ? "" : `${Math.round(100 * value)}%`);
  const color = (model) => data.colors[model];

  // --- pictures ---------------------------------------------------------------------------------------------------

  const WIDTH = 400;
  const heightOf = (question) => (WIDTH * question.size[1]) / question.size[0];
  const clamp = (value) => Math.min(Math.max(value, 0), 1);

  function marks(question, answers) {
    const height = heightOf(question);
    const drawn = [];
    const path = question.outline.map((flat) => {
      const corners = [];
      for (let at = 0; at < flat.length; at += 2) corners.push(`${(flat[at] * WIDTH) / 1000} ${(flat[at + 1] * height) / 1000}`);
      return `M${corners.join(" L")} Z`;
    }).join(" ");
    if (path) drawn.push(svg("path", { class: "rim", d: path }), svg("path", { class: "truth", d: path }));
    const { few, shrink, fade } = data.dots;
    const part = Math.min(1, few / Math.max(1, answers.reduce((sum, [items]) => sum + items.length, 0)));
    const size = part ** shrink, alpha = part ** fade;
    const all = svg("g", { style: `--dot-size: ${size}; fill-opacity: ${alpha}; stroke-opacity: ${alpha}` });
    const frame = svg("svg", { width: WIDTH, height });  // an inner svg cuts off what of a box lies beyond the image
    all.append(frame);
    drawn.push(all);
    for (const [items, fill] of answers) {
      for (const item of items) {
        if (item.length === 4) {
          const at = { x: item[0] * WIDTH, y: item[1] * height };
          const box = { ...at, width: item[2] * WIDTH - at.x, height: item[3] * height - at.y };
          frame.append(svg("rect", { class: "boxrim", ...box }), svg("rect", { class: "box", ...box, style: `stroke: ${fill}` }));
        } else {
          const inside = item[0] >= 0 && item[0] <= 1 && item[1] >= 0 && item[1] <= 1;
          const style = inside ? `fill: ${fill}` : `stroke: ${fill}`;
          all.append(svg("circle", { class: inside ? "dot" : "outside", cx: clamp(item[0]) * WIDTH, cy: clamp(item[1]) * height, r: 7 * size, style }));
        }
      }
    }
    return drawn;
  }
  function picture(question, answers, label) {
    const height = heightOf(question);
    const image = svg("image", { href: question.image, width: WIDTH, height, preserveAspectRatio: "none" });
    const attributes = { class: "picture", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label };
    return svg("svg", attributes, image, ...marks(question, answers));
  }

  // Bilinear between the centres of the grid's cells, cropped to the image; the hotter, the more opaque.
  function heatMap(question, attention, step) {
    const side = attention.side;
    const bytes = Uint8Array.from(atob(step.grid), (letter) => letter.charCodeAt(0));
    const [left, top, wide, high] = attention.crop;
    const columns = Math.max(1, Math.round(160 * wide)), rows = Math.max(1, Math.round(160 * high));
    const canvas = make("canvas", { width: columns, height: rows });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    const at = (row, column) => bytes[Math.min(Math.max(row, 0), side - 1) * side + Math.min(Math.max(column, 0), side - 1)];
    for (let y = 0; y < rows; y++) {
      const down = (top + ((y + 0.5) / rows) * high) * side - 0.5, row = Math.floor(down), lower = down - row;
      for (let x = 0; x < columns; x++) {
        const across = (left + ((x + 0.5) / columns) * wide) * side - 0.5, column = Math.floor(across), right = across - column;
        const upper = at(row, column) * (1 - right) + at(row, column + 1) * right;
        const below = at(row + 1, column) * (1 - right) + at(row + 1, column + 1) * right;
        const level = (upper * (1 - lower) + below * lower) / 255;
        const shade = heat[Math.min(heat.length - 1, Math.floor(level * heat.length))];
        pixels.data.set([...shade, 255 * 0.85 * level ** 0.7], 4 * (y * columns + x));
      }
    }
    context.putImageData(pixels, 0, 0);
    const base = picture(question, [], "The image");
    base.querySelectorAll("path").forEach((one) => one.remove());
    const over = svg("svg", { class: "picture over", viewBox: `0 0 ${WIDTH} ${heightOf(question)}` }, ...marks(question, [[attention.answer.items, color(attention.model)]]));
    return make("div", { class: "heat" }, base, canvas, over);
  }

  // --- the panel of one question ----------------------------------------------------------------------------------

  function words(answer) {
    const found = answer.steps.map(([heading, text], index) =>
      make("div", { class: "step" }, make("b", {}, `${index + 1}. ${heading}`), make("p", {}, text)));
    if (!found.length) found.push(make("p", { class: "faded" }, "This answer holds no reasoning."));
    found.push(make("div", { class: "step" }, make("b", {}, "Final answer"), make("p", { class: "points" }, answer.final || "(empty)")));
    found.push(...answer.problems.map((problem) => make("p", { class: "problem" }, problem)));
    found.push(make("details", {}, make("summary", {}, "The model's text"), make("pre", {}, answer.text)));
    return found;
  }
  function answerColumn(question, answer, label) {
    const facts = [
      answer.accuracy === null ? "" : `${percent(answer.accuracy)} in the target`,
      answer.outcome && answer.outcome !== "right" ? answer.outcome : "",
      answer.confidence === null ? "" : `confidence ${percent(answer.confidence)}`,
    ].filter(Boolean).join(" \u00b7 ");
    const title = make("h4", {}, make("div", {}, make("i", { class: "swatch", style: `background: ${color(label)}` }), label), make("span", {}, facts));
    return make("div", { class: "answer" }, title, picture(question, [[answer.items, color(label)]], `Answer of ${label}`), make("div", {}, ...words(answer)));
  }
  function strip(question) {
    const attention = question.attention;
    const figures = attention.steps.map((step, index) => {
      const numbers = step.tokens ? `tokens ${step.tokens[0]}\u2013${step.tokens[1]}` : "missing";
      const share = step.numbers[0] === null ? "" : `image share ${(100 * step.numbers[0]).toFixed(1)}%`;
      const caption = make("figcaption", {}, make("b", {}, `${index + 1}. ${step.title}`), make("span", { class: "faded" }, numbers, make("br"), share));
      const shown = step.grid === null ? make("div", { class: "absent" }, "step missing") : heatMap(question, attention, step);
      shown.title = step.numbers.map((value, place) => (value === null ? "" : `${measures[place]}: ${value.toFixed(3)}`)).filter(Boolean).join("\n");
      return make("figure", {}, caption, shown, make("p", {}, step.text));
    });
    const about = `${attention.model}, layers ${attention.layers}; hottest colour: ${(100 * attention.top).toPrecision(2)} % of attention on one image token, the same in every step`;
    return [make("h5", {}, "Where the model looked"), make("p", { class: "faded" }, about), make("div", { class: "strip" }, ...figures)];
  }

  const panel = byId("panel");
  let shown = data.questions, open = -1;
  function show(place) {
    if (place < 0 || place >= shown.length) return;
    open = place;
    const question = shown[place];
    const columns = question.answers.map((answer, index) => answerColumn(question, answer, data.labels[index]));
    if (!columns.length && question.attention) columns.push(answerColumn(question, question.attention.answer, question.attention.model));
    const one = [`question ${question.id}`, question.category, question.kind].filter(Boolean).join(" \u00b7 ");
    const button = (text, label, action) => make("button", { type: "button", title: label, ariaLabel: label, onclick: action }, text);
    const head = make("div", { class: "head" }, make("div", {}, make("span", { class: "faded" }, `${one} (${place + 1} of ${shown.length})`), make("h3", {}, question.instruction)),
      button("\u2190", "the one before", () => show(open - 1)), button("\u2192", "the next one", () => show(open + 1)), button("\u00d7", "close", () => panel.close()));
    const body = make("div", { class: columns.length === 1 ? "body one" : "body" }, make("div", { class: "columns" }, ...columns), ...(question.attention ? strip(question) : []));
    if (columns.length === 1) {  // beside the picture instead of below it
      const texts = columns[0].lastChild;
      body.firstChild.append(texts);
    }
    panel.replaceChildren(head, body);
    if (!panel.open) panel.showModal();
    panel.scrollTop = 0;
    history.replaceState(null, "", `#q=${encodeURIComponent(question.id)}`);
  }
  panel.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
  panel.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(open - 1);
    if (event.key === "ArrowRight") show(open + 1);
  });

  // --- the grid ---------------------------------------------------------------------------------------------------

  const accuracies = (question) => (question.answers.length ? question.answers : question.attention ? [question.attention.answer] : [])
    .map((answer) => answer.accuracy).filter((value) => value !== null);
  const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : NaN);
  const gap = (question) => { const values = accuracies(question); return values.length ? Math.max(...values) - Math.min(...values) : NaN; };
  const falling = (rank) => (a, b) => (Number.isNaN(rank(a)) ? 1 : Number.isNaN(rank(b)) ? -1 : rank(b) - rank(a));
  const ORDERS = {
    "as given": null,
    "worst first": falling((question) => -mean(accuracies(question))),
    "best first": falling((question) => mean(accuracies(question))),
    "most disagreement": falling(gap),
  };
  const CORRECT = {
    "any accuracy": () => true,
    "all models right": (question) => accuracies(question).length > 0 && Math.min(...accuracies(question)) >= 0.5,
    "some model wrong": (question) => accuracies(question).some((value) => value < 0.5),
    "all models wrong": (question) => accuracies(question).length > 0 && Math.max(...accuracies(question)) < 0.5,
    "models disagree": (question) => gap(question) >= 0.5,
  };
  const values = (of) => [...new Set(data.questions.flatMap(of))].filter((value) => value !== "").sort();
  const choices = {};
  function choice(label, options) {
    const select = make("select", { onchange: update }, ...options.map((text) => make("option", { value: text }, text)));
    choices[label] = select;
    byId("filters").append(make("label", {}, label, select));
  }
  const search = make("input", { type: "search", placeholder: "words", oninput: update });
  byId("filters").append(make("label", {}, "search", search));
  const ALL = "all";
  const filters = { category: (question) => [question.category], kind: (question) => [question.kind], outcome: (question) => question.answers.map((answer) => answer.outcome) };
  for (const [label, of] of Object.entries(filters)) if (values(of).length > 1) choice(label, [ALL, ...values(of)]);
  if (data.questions.some((question) => accuracies(question).length)) choice("accuracy", Object.keys(CORRECT));
  choice("order", Object.keys(ORDERS).slice(0, choices.accuracy ? (data.labels.length > 1 ? 4 : 3) : 1));
  const count = make("output");
  byId("filters").append(count);

  function tile(question, place) {
    const scores = question.answers.map((answer, index) => make("div", { title: answer.outcome }, make("span", { class: "swatch", style: `background: ${color(data.labels[index])}` }), data.labels[index], make("b", {}, percent(answer.accuracy))));
    if (!scores.length && question.attention && question.attention.answer.accuracy !== null) scores.push(make("div", {}, question.attention.model, make("b", {}, percent(question.attention.answer.accuracy))));
    const drawn = question.answers.length ? question.answers.map((answer, index) => [answer.items, color(data.labels[index])]) : question.attention ? [[question.attention.answer.items, color(question.attention.model)]] : [];
    const frame = make("div", { class: "frame" }, picture(question, drawn, question.instruction));
    return make("button", { class: "tile", type: "button", onclick: () => show(place) }, frame, make("p", {}, question.instruction), make("div", { class: "scores" }, ...scores));
  }
  function more() {
    const grid = byId("grid"), from = grid.childElementCount;
    grid.append(...shown.slice(from, from + PAGE).map((question, index) => tile(question, from + index)));
    byId("more").hidden = grid.childElementCount >= shown.length;
  }
  function update() {
    const wanted = search.value.trim().toLowerCase();
    const fits = (question) =>
      Object.entries(filters).every(([label, of]) => !choices[label] || choices[label].value === ALL || of(question).includes(choices[label].value)) &&
      (!choices.accuracy || CORRECT[choices.accuracy.value](question)) &&
      (!wanted || [question.id, question.instruction, ...question.answers.map((answer) => answer.text)].some((text) => text.toLowerCase().includes(wanted)));
    shown = data.questions.filter(fits);
    const order = ORDERS[choices.order.value];
    if (order) shown = [...shown].sort(order);
    count.textContent = `${shown.length} of ${data.questions.length} questions`;
    byId("grid").replaceChildren();
    more();
  }
  byId("more").onclick = more;
  update();
  function follow() {
    const asked = location.hash.startsWith("#q=") ? decodeURIComponent(location.hash.slice(3)) : null;
    const is = (question) => question.id === asked;
    if (!shown.some(is) && data.questions.some(is)) {  // the filters hide it
      search.value = "";
      for (const select of Object.values(choices)) select.selectedIndex = 0;
      update();
    }
    show(shown.findIndex(is));
  }
  window.addEventListener("hashchange", follow);
  follow();
})();
