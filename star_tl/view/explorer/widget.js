// The page of star_tl.explore: it draws what the widget's traits hold and sends back what was clicked.
// What a model or a user wrote is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const TABS = { components: "Layer × component", heads: "Layer × head", tokens: "Layer × token" };
const PATIENCE = 8000;  // ms without an answer, after which the page says so

const put = (node, attributes, children) => {
  for (const [key, value] of Object.entries(attributes))
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  node.append(...children.flat(Infinity).filter(child => child != null));
  return node;
};
// JupyterLab's shortcuts look at the focused element itself: keys pressed here are not for the notebook.
const el = (tag, attributes = {}, ...children) =>
  put(document.createElement(tag), { ...attributes, "data-lm-suppress-shortcuts": true }, children);
// Enter takes a number over; where a host keeps the key to itself the field would wait for the focus to leave.
const enter = event => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  event.stopPropagation();
  event.target.blur();
  event.target.focus();
};
const svg = (tag, attributes = {}, ...children) => put(document.createElementNS(SVG, tag), attributes, children);
const minus = text => text.replace("-", "−");
const signed = (x, digits = 3) => {
  const text = Math.abs(x).toFixed(digits);
  return (Number(text) === 0 ? "" : x < 0 ? "−" : "+") + text;
};
const percent = x => `${Math.round(100 * x)} %`;
const visible = t => t == null ? "·" : t.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
const where = locus => `${locus.source ? `${locus.source.replace(/_/g, " ")}: layer` : "Layer"} ${locus.layer} · ${locus.head != null ? `head ${locus.head}` : part(locus.hook_point)}`;
const part = hook => hook.split("hook_")[1];
const at = locus => `token ${locus.positions.map(p => minus(String(p))).join(", ")}`;

let count = 0;

function render({ model, el: root }) {
  const id = `star-${++count}`, about = model.get("about"), start = model.get("settings");
  const send = (what, more = {}) => model.send({ do: what, ...more });
  const cursor = {};  // per tab: the cell that the Tab key reaches
  let tab = "components";

  // Labelled controls

  const field = (label, control, extra) => el("label", {}, el("span", {}, label, extra), control);
  const select = (options, value, onchange) => {
    const entries = Array.isArray(options) ? options.map(o => [o, o]) : Object.entries(options);
    return el("select", { onchange },
      entries.map(([key, name]) => el("option", { value: key, selected: String(key) === String(value) }, name)));
  };
  const pairs = [["-1", `mean over ${about.pairs.length} pairs`], ...about.pairs.map((name, i) => [String(i), name])];
  const redraw = () => send("map", {
    estimator: estimator.value, form: form.value, pair: Number(pair.value), component: component.value,
  });
  const estimator = select(about.estimators, start.estimator, redraw);
  const form = select({ classical: "classical (Δa·g)", steering: "steering (v·g)" }, start.form, redraw);
  const pair = select([], "", redraw);
  pair.append(...pairs.map(([key, name]) => el("option", { value: key }, name)));
  pair.value = start.pair;
  pair.append(el("option", { value: "-2" }, "this prompt, steered − unsteered"));
  const component = select([], start.component, redraw);
  const componentField = field("Hook point", component);

  const prompt = el("textarea", { rows: 2, spellcheck: "false", onkeydown: event => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    generate();
  } });
  prompt.value = start.prompt;
  prompt.addEventListener("input", () => { note.hidden = true; });
  const system = el("input", { type: "text", onkeydown: enter, value: start.system, spellcheck: "false", placeholder: "none", onchange: () => generate() });
  const number = (value, attributes) => el("input", { type: "number", value, onkeydown: enter, onchange: () => generate(), ...attributes });
  const seed = number(start.seed, { min: 0, step: 1 });
  const seeds = number(start.count, { min: 1, max: about.seeds, step: 1 });
  const temperature = number(start.temperature, { min: 0, max: 2, step: 0.1 });
  const length = number(start.length, { min: 1, step: 10 });
  const together = el("input", { type: "checkbox", onchange: () => generate() });
  const go = el("button", { class: "go", onclick: () => generate() }, "Generate");
  const reroll = el("button", { title: "The same with another seed", onclick: () => {
    seed.value = Number(seed.value) + Number(seeds.value);
    generate();
  } }, "Reroll");
  const stop = el("button", { onclick: () => send("stop"), disabled: true }, "Stop");
  const save = el("button", { title: "One HTML file and a CSV", onclick: () => send("snapshot") }, "Save snapshot");
  let waiting;
  const ask = (what, more) => {
    clearTimeout(waiting);
    status.textContent = "Asking …";  // until the kernel answers
    waiting = setTimeout(() => { status.textContent = "No answer yet: the kernel is busy, or not running."; }, PATIENCE);
    send(what, more);
  };
  const wanted = () => ({
    prompt: prompt.value, system: system.value, seed: Number(seed.value) || 0, count: Number(seeds.value) || 1,
    temperature: Number(temperature.value), length: Number(length.value) || 1, together: together.checked,
  });
  const generate = () => ask("generate", wanted());

  // A text field that offers what is usual and takes anything.
  function combobox(label, value, options, commit) {
    const own = `${id}-offers-${++count}`;
    let active = -1, said = value;
    const input = el("input", { type: "text", role: "combobox", "aria-expanded": "false", "aria-autocomplete": "none",
      "aria-controls": own, autocomplete: "off", spellcheck: "false", onkeydown: keys,
      onclick: () => unfold(list.hidden), oninput: () => mark(-1), onblur: () => unfold(false), onchange: () => done() });
    input.value = value;
    const list = el("ul", { role: "listbox", id: own, class: "offers", "aria-label": label, hidden: true },
      options.map(([name, words], i) => el("li", { role: "option", id: `${own}-${i}`,
        onmousedown: event => event.preventDefault(),  // the field keeps the focus
        onclick: () => take(i), onmousemove: () => mark(i) }, el("b", {}, name), el("span", {}, words))));
    const mark = i => {
      active = i;
      for (const [k, option] of [...list.children].entries()) option.setAttribute("aria-selected", k === i);
      if (i < 0) return input.removeAttribute("aria-activedescendant");
      input.setAttribute("aria-activedescendant", list.children[i].id);
      list.children[i].scrollIntoView({ block: "nearest" });
    };
    const unfold = open => {
      list.hidden = !open;
      input.setAttribute("aria-expanded", open);
      mark(open ? options.findIndex(([name]) => name === input.value) : -1);
    };
    const done = () => {
      if (input.value === said) return;
      said = input.value;
      commit(said);
    };
    const take = i => {
      input.value = options[i][0];
      unfold(false);
      done();
    };
    function keys(event) {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step && list.hidden) unfold(true);
      else if (step) mark(active < 0 && step < 0 ? options.length - 1 : (active + step + options.length) % options.length);
      else if (event.key === "Enter") active < 0 ? (unfold(false), done()) : take(active);
      else if (event.key === "Escape" && !list.hidden) unfold(false);
      else return;
      event.preventDefault();
      event.stopPropagation();
    }
    const show = text => { if (root.getRootNode().activeElement !== input) input.value = said = text; };
    return [el("div", { class: "combobox" }, field(label, input), list), show];
  }

  // The kernel looks for a prompt at first; what was typed meanwhile stays.
  const note = el("p", { class: "soft", hidden: true });
  let offered = start.prompt, offeredSeed = start.seed;
  function sayPrompt() {
    const { prompt: shown, note: words, seed: sown } = model.get("settings");
    if (Number(seed.value) === offeredSeed) seed.value = offeredSeed = sown;
    note.textContent = words;
    note.hidden = !words || prompt.value !== shown && prompt.value !== offered;
    if (prompt.value === offered) prompt.value = offered = shown;
  }

  // The map

  const tabs = el("div", { role: "tablist", "aria-label": "Map", class: "tabs", onkeydown: turn },
    Object.entries(TABS).map(([key, name]) => el("button", {
      role: "tab", id: `${id}-tab-${key}`, "data-tab": key, "aria-controls": `${id}-map`, onclick: () => open(key),
    }, name)));
  const grid = el("div", { role: "grid", class: "grid", onkeydown: walk });
  const tip = el("div", { class: "tip", role: "tooltip" });
  const map = el("div", { role: "tabpanel", id: `${id}-map`, class: "map" }, tip, el("div", { class: "scroll" }, grid));
  const legend = el("div", { class: "legend" });
  const believe = el("p", { class: "soft believe" });  // how sure, and where it may be chance

  function open(key) {
    tab = key;
    for (const button of tabs.children) {
      const chosen = button.dataset.tab === key;
      button.setAttribute("aria-selected", chosen);
      button.tabIndex = chosen ? 0 : -1;
    }
    map.setAttribute("aria-labelledby", `${id}-tab-${key}`);
    componentField.hidden = key !== "tokens";
    drawMap();
  }

  function turn(event) {
    const keys = Object.keys(TABS), step = { ArrowRight: 1, ArrowLeft: keys.length - 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    open(keys[(keys.indexOf(tab) + step) % keys.length]);
    tabs.querySelector("[aria-selected=true]").focus();
  }

  const locusOf = (column, layer) => ({
    hook_point: `blocks.${layer}.${column.hook}`, head: column.head ?? null,
    positions: column.position != null ? [column.position] : about.place,
  });
  // In the tabs without tokens a cell stands for its locus at whatever positions, so that a second click removes it.
  const holds = (locus, column, cellLocus) => locus.hook_point === cellLocus.hook_point && locus.head === cellLocus.head
    && (column.position == null || locus.positions.includes(column.position));
  const same = (a, b) => a.hook_point === b.hook_point && a.head === b.head
    && a.positions.join() === b.positions.join();

  function colour(score, limit) {
    const share = Math.min(1, Math.abs(score) / limit), side = score < 0 ? "low" : "high";
    return share <= 0.6
      ? `color-mix(in srgb, var(--${side}) ${(share / 0.6 * 100).toFixed(1)}%, var(--middle))`
      : `color-mix(in srgb, var(--${side}-end) ${((share - 0.6) / 0.4 * 100).toFixed(1)}%, var(--${side}))`;
  }

  function drawMap() {
    const shown = model.get("map");
    for (const button of tabs.children) button.disabled = !shown[button.dataset.tab];
    if (!shown[tab]) tab = "components";
    component.replaceChildren(...shown.known.map(name => el("option", { value: name, selected: name === shown.component }, name)));
    const panel = shown[tab], loci = model.get("loci"), { suggested } = shown;
    const focused = grid.contains(root.getRootNode().activeElement);
    const { columns, groups } = panel, wide = tab === "components";
    const chosen = columns.findIndex(c => same(locusOf(c, suggested.layer), suggested));
    const moved = cursor[tab]?.end !== columns.length;
    if (moved) cursor[tab] = { row: suggested.layer, col: Math.max(0, chosen), end: columns.length };
    const width = wide ? "minmax(48px, 1fr)" : tab === "heads" ? "minmax(8px, 1fr)" : "minmax(17px, 26px)";
    const tall = Math.round(Math.max(5, Math.min(wide ? 42 : 30, (shown.layers > 40 ? 640 : 520) / shown.layers)));
    const step = Math.ceil(13 / tall);  // layers that have a label
    grid.style.gridTemplateColumns = `44px ${groups.map(g => `repeat(${g.end - g.start}, ${width})`).join(" ")}`;
    grid.style.width = tab === "heads" ? `min(100%, ${44 + 55 * columns.length}px)` : "";  // 32 heads fit, few do not swell
    grid.style.setProperty("--cell", `${tall}px`);
    grid.className = `grid ${tab}`;
    grid.setAttribute("aria-label",
      `${TABS[tab]}: arrow keys move, Enter selects or removes a locus. Scores in nats, positive raises the trait.`);
    const rows = [];
    if (panel.spans) rows.push(spanRow(panel.spans));
    else rows.push(el("div", { class: "row", role: "row" }, el("div", { class: "corner", role: "columnheader" }, "layer"),
      groups.map(g => el("div", { class: "group", role: "columnheader", style: `grid-column: span ${g.end - g.start}` },
        g.label))));
    for (let layer = shown.layers - 1; layer >= 0; layer--)
      rows.push(el("div", { class: "row", role: "row" },
        rowHeader(layer, layer % step ? "" : String(layer), loci.filter(l => l.layer === layer)),
        columns.map((column, col) => cell(panel, column, layer, col, suggested, loci, wide && tall >= 15))));
    rows.push(el("div", { class: "row", role: "row" }, el("div", { class: "corner", role: "gridcell" }),
      columns.map(column => el("div", {
        class: "column", role: "columnheader", title: tab === "tokens" ? `position ${column.position}` : null,
      }, tab === "tokens" ? el("span", {}, tokenLabel(column)) : column.label))));
    grid.replaceChildren(...rows);
    legend.replaceChildren(...groups.map(g => el("div", {},
      el("span", {}, signed(-g.limit)), el("span", { class: "bar", "aria-hidden": "true" }),
      el("span", {}, signed(g.limit)))), el("span", {}, "score, nats; positive = toward clean raises the trait"));
    believe.textContent = suggested.priced ? `★ Attribution says: ${suggested.said}.` : "";
    const reached = grid.querySelector("[tabindex='0']");
    if (focused) reached.focus();
    if (moved) grid.parentElement.scrollLeft = tab === "tokens" && shown.mean ? 1e6  // the prompt's last token
      : reached.offsetLeft - grid.parentElement.clientWidth / 2;
    sayWhich();
  }

  // A locus of another component is seen by its layer, in every tab.
  function rowHeader(layer, label, here) {
    const node = el("div", { class: `layer${here.length ? " taken" : ""}`, role: "rowheader",
      title: here.map(where).join("; ") || null }, here.length ? String(layer) : label);
    if (here.length) node.style.setProperty("--hue", about.colours.loci[here[0].colour]);
    return node;
  }

  // What the map shows, which is not what was asked for where attribution was stopped.
  function sayWhich() {
    const shown = model.get("settings");
    estimator.value = shown.estimator;
    form.value = shown.form;
    pair.value = shown.pair;
    component.value = shown.component;
    pair.disabled = shown.form === "steering";
    pair.title = pair.disabled ? "The steering form is a mean over pairs by its nature" : "";
  }

  const tokenLabel = column => column.label == null ? minus(String(column.position)) : visible(column.label);

  function spanRow(spans) {
    let from = 0;
    const cells = [];
    for (const [name, a, b] of spans) {
      if (a > from) cells.push(el("div", { role: "gridcell", style: `grid-column: span ${a - from}` }));
      cells.push(el("div", { class: "span", role: "columnheader", style: `grid-column: span ${b - a}`, title: name }, el("span", {}, name)));
      from = b;
    }
    return el("div", { class: "row", role: "row" }, el("div", { class: "corner", role: "gridcell" }), cells);
  }

  function cell(panel, column, layer, col, suggested, loci, wide) {
    const score = panel.z[layer][col], group = panel.groups.find(g => g.start <= col && col < g.end);
    const locus = locusOf(column, layer), taken = loci.find(l => holds(l, column, locus));
    const own = loci.find(l => !l.source && holds(l, column, locus));
    const usable = locus.positions.every(p => p < 0);
    const gains = panel.columns.some(c => c.gain);
    const star = suggested.priced && same(locus, suggested) && (column.gain || !gains) ? "★" : "";
    const interval = panel.low && panel.low[layer][col] != null
      ? `, 95 % interval ${signed(panel.low[layer][col], 4)} to ${signed(panel.high[layer][col], 4)}` : "";
    const token = column.position != null
      ? `, position ${minus(String(column.position))}, token ${column.label == null ? "differs between pairs" : visible(column.label)}`
      : "";
    const head = column.head != null ? `, head ${column.head}` : "";
    const said = `layer ${layer}${head}, ${column.gain ? "gain" : part(column.hook)}${token}, ${column.gain ? "gain" : "score"} ${signed(score, 4)} nats${interval}`
      + (star ? (suggested.chosen ? ", chosen by attribution" : ", where drift buys most") : "") + (usable ? "" : ", in the reply: no locus");
    const node = el("div", {
      role: "gridcell", class: "cell", "aria-label": said, "aria-selected": Boolean(taken).toString(),
      "aria-disabled": usable ? null : "true", "data-row": layer, "data-col": col,
      tabindex: cursor[tab].row === layer && cursor[tab].col === col ? 0 : -1,
      onclick: event => {
        move(layer, col);
        if (event.shiftKey) return choose(locus, usable, true);
        if (column.head != null) cursor.head = { layer, head: column.head };
        choose(own && column.position == null ? own : locus, usable);
      },
      onmouseenter: () => showTip(node, said, locus), onmouseleave: hideTip,
      onfocus: () => showTip(node, said, locus), onblur: hideTip,
    }, wide ? signed(score) + (star && ` ${star}`) : star);
    node.style.background = colour(score, group.limit);
    if (Math.abs(score) > 0.42 * group.limit) node.classList.add("strong");
    if (taken) node.style.setProperty("--hue", about.colours.loci[taken.colour]);
    if (taken) node.classList.add("taken");
    return node;
  }

  function choose(locus, usable = true, extend = false) {
    if (usable) ask("toggle", { hook_point: locus.hook_point, positions: locus.positions, head: locus.head, extend, settings: wanted() });
  }

  // In a line above the map, where it covers no cell.
  function showTip(node, said, locus) {
    tip.replaceChildren(el("b", {}, locus.hook_point), `  ${said}`);
  }
  function hideTip() {
    tip.replaceChildren(el("span", {}, tab === "tokens" ? "Click a token; with Shift it joins the place already selected in its layer."
      : "Point at a cell to read it, click to steer there."));
  }

  function move(row, col) {
    const now = grid.querySelector("[tabindex='0']"), next = grid.querySelector(`[data-row='${row}'][data-col='${col}']`);
    if (!next) return;
    if (now) now.tabIndex = -1;
    next.tabIndex = 0;
    Object.assign(cursor[tab], { row, col });
    next.focus();
  }

  function walk(event) {
    const { row, col } = cursor[tab], end = model.get("map")[tab].columns.length - 1;
    const step = {
      ArrowUp: [row + 1, col], ArrowDown: [row - 1, col], ArrowLeft: [row, col - 1], ArrowRight: [row, col + 1],
      Home: [row, 0], End: [row, end],
    }[event.key];
    if (step) move(...step);
    else if (event.key === "Enter" || event.key === " ") event.target.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // What steering does

  const chips = el("ul", { class: "chips", "aria-label": "Selected loci" });
  const replies = el("div", { class: "replies" });
  const status = el("span", { role: "status" });
  const problem = el("span", { role: "alert", class: "problem" });
  const progress = el("progress", { max: 1, hidden: true, "aria-label": "Progress" });
  const charts = el("div", { class: "charts" });
  let drawnWidth = 0;
  const table = el("div", { class: "scroll" });
  const kept = el("section", { class: "kept", hidden: true, "aria-label": "The vector that was kept" });

  const colourOf = name => {
    const locus = model.get("loci").find(l => l.name === name);
    return locus ? about.colours.loci[locus.colour] : about.colours.unsteered;
  };
  const nameOf = name => {
    const locus = model.get("loci").find(l => l.name === name);
    return locus ? where(locus).toLowerCase() : "";
  };
  const hue = name => `--hue: ${colourOf(name)}`;  // the style sheet lightens it on dark
  const swatch = name => el("span", { class: "swatch", style: hue(name), "aria-hidden": "true" });

  const rows = {};  // by locus: its controls, which stay while they are used
  function control(locus) {
    const name = locus.name, change = more => ask("adjust", { name, settings: wanted(), ...more });
    const slider = el("input", { type: "range", step: "any", "aria-label": `Strength at ${where(locus)}`,
      oninput: () => { exact.value = Number(slider.value).toPrecision(3); said(Number(slider.value)); drawCharts(); },
      onchange: () => change({ strength: Number(Number(slider.value).toPrecision(3)) }) });
    const exact = el("input", { type: "number", step: "any", onkeydown: enter, "aria-label": `Strength at ${where(locus)}, exactly`,
      onchange: () => change({ strength: Number(exact.value) }) });
    const safe = el("div", { class: "safe", "aria-hidden": "true" }, el("div"));
    const means = el("span", { class: "means" }), advised = el("button", { class: "advised" });
    const [positionsField, showPositions] = combobox("Added at", locus.at, Object.entries(about.positions), at => change({ at: at.trim() }));
    const ladder = el("button", { title: "Several strengths of this place side by side", onclick: () => ask("ladder", { name, settings: wanted() }) }, "Ladder");
    const look = locus.head == null ? null : el("button", { title: "What this head looks at in the prompt",
      onclick: () => ask("pattern", { layer: locus.layer, head: locus.head }) }, "Attention");
    let now = locus;
    function said(value) {
      if (now.fraction == null) { means.textContent = "…"; return; }
      const drift = driftAt(now.drift, value);
      means.textContent = `× residual norm = ${minus((value / now.fraction).toFixed(1))} natural differences`
        + (drift == null ? "" : `, drift ${drift.toFixed(2)}`);
    }
    const other = select({ "": "+ vector of …", ...Object.fromEntries(about.traits.map(t => [t, t.replace(/_/g, " ")])) }, "", () => {
      ask("other", { name, trait: other.value });
      other.value = "";
    });
    put(other, { class: "other", "aria-label": `Add another trait's vector at ${where(locus)}`, title: "Another trait's vector at the same place" }, []);
    const node = el("li", { class: "place", style: hue(name) },
      el("div", { class: "head" }, swatch(name), el("b", {}, where(locus)), el("span", { class: "soft at" }),
        el("button", { class: "remove", "aria-label": `Remove ${where(locus)}`, title: "Remove", onclick: () => ask("remove", { name }) }, "×")),
      el("div", { class: "slider" }, safe, slider),
      el("div", { class: "line" }, exact, means),
      el("div", { class: "line" }, positionsField, advised, ladder, look, other));
    const draw = locus => {
      now = locus;
      const idle = root.getRootNode().activeElement !== slider || !slider.matches(":active"), most = locus.most ?? 1;
      node.querySelector(".at").textContent = locus.at === "locus" ? at(locus) : `vector of ${at(locus)}, added at ${locus.at}`;
      slider.disabled = exact.disabled = locus.most == null;
      slider.min = -most;
      slider.max = most;
      if (idle) slider.value = locus.strength ?? 0;
      if (root.getRootNode().activeElement !== exact) exact.value = locus.strength ?? "";
      const share = locus.safe == null ? 0 : Math.min(1, locus.safe / most);
      safe.firstChild.style = `margin-left: ${50}%; width: ${50 * share}%`;
      safe.title = locus.safe == null ? "" : `drift below ${about.limit} nats per token`;
      advised.hidden = locus.best == null;
      if (locus.best != null) {
        advised.textContent = `Advised: ${locus.best.toFixed(2)}${locus.sure ? "" : ", may be chance"}`;
        advised.title = locus.sure ? "" : "The interval of its rate reaches down to that of the unsteered replies";
        advised.onclick = () => change({ strength: locus.best });
      }
      showPositions(locus.at);
      said(Number(slider.value));
    };
    return { node, draw, value: () => Number(slider.value) };
  }

  function driftAt(curve, value) {
    if (!curve.length || value < 0 || value > curve.at(-1)[0]) return null;
    const k = Math.max(1, curve.findIndex(([x]) => x >= value));
    const [[x0, y0], [x1, y1]] = [curve[k - 1], curve[k]];
    return y0 + (y1 - y0) * (value - x0) / (x1 - x0);
  }

  function drawChips() {
    const loci = model.get("loci"), s = model.get("map").suggested, focused = chips.contains(root.getRootNode().activeElement);
    for (const name of Object.keys(rows)) if (!loci.some(l => l.name === name)) delete rows[name];
    const nodes = loci.map(locus => (rows[locus.name] ??= control(locus)).node);
    if (nodes.some((node, i) => chips.children[i] !== node) || chips.querySelectorAll(".place").length !== nodes.length)
      chips.replaceChildren(...nodes);
    for (const locus of loci) rows[locus.name].draw(locus);
    chips.querySelector(".add")?.remove();
    if (!loci.some(l => !l.source && l.hook_point === s.hook_point && l.head === s.head))
      chips.append(el("li", { class: "add" }, el("button", { onclick: () => choose(s) },
        `★ Add ${where(s).toLowerCase()} · ${at(s)}, ${s.chosen ? "chosen by attribution" : s.priced ? "where drift buys most, which may be chance" : "a middle layer"} (${s.said})`)));
    togetherField.hidden = loci.length < 2;
    if (focused && !chips.contains(root.getRootNode().activeElement)) chips.querySelector("button")?.focus();
  }

  function drawLoci() {
    drawChips();
    drawMap();
    drawReplies();
    drawDoses();
  }

  function drawReplies() {
    const written = model.get("replies");
    // A card stays in its place while text streams into it, so that the focus on its button stays too.
    const old = Object.fromEntries([...replies.children].map(card => [card.dataset.key, card]));
    const cards = written.map(reply => {
      const { key, name, title, strength, runs } = reply;
      const card = old[key] ?? el("article", { "data-key": key, "aria-label": `Reply, ${title}` },
        el("h4", {}), el("div", { class: "runs" }), el("div", { class: "line" },
          el("button", { onclick: () => ask("continue", { key }) }, "Answer this"),
          name && el("button", { onclick: () => send("keep", { name }) }, "Keep this vector")));
      const [head, texts] = card.children;
      head.replaceChildren(swatch(name), title, strength == null ? "" : el("span", { class: "soft strengthened" }, `at ${minus(strength.toPrecision(2))}`));
      texts.replaceChildren(...(runs.length ? runs : [{ segments: [] }]).map(run => el("div", {},
        el("p", { class: `text${run.writing ? " writing" : ""}`, dir: "auto" },
          run.segments.length ? run.segments.map(segment) : el("span", { class: "soft" }, "…")),
        el("p", { class: "soft" }, run.markers == null ? "" : `${run.markers} marker${run.markers === 1 ? "" : "s"}`
          + (run.drift != null && key ? ` · drift ${run.drift.toFixed(2)} nats per token` : "")
          + (run.logprob != null ? ` · log-prob. ${minus(run.logprob.toFixed(2))}` : "")))));
      return card;
    });
    if (cards.length !== replies.children.length || cards.some((card, i) => replies.children[i] !== card)) replies.replaceChildren(...cards);
    replies.hidden = !written.length;
  }

  function drawTalk() {
    const talk = model.get("talk");
    history.hidden = !talk.length;
    history.replaceChildren(...talk.map(({ role, content }) => el("p", { class: role, dir: "auto" }, el("b", {}, role), ` ${content}`)),
      el("button", { onclick: () => send("undo") }, "Undo the last turn"));
    if (talk.length && prompt.value === talk.at(-2).content) prompt.value = "";
  }

  function drawPattern() {
    const { layer, head, tokens, weights } = model.get("pattern");
    attention.hidden = tokens == null;
    if (tokens == null) return;
    const n = tokens.length, size = Math.max(4, Math.min(14, 420 / n)), says = el("p", { class: "soft" }, "Point at a square.");
    const canvas = el("canvas", { width: n * size, height: n * size, role: "img", "aria-label": `Attention of layer ${layer}, head ${head}`,
      onmousemove: event => {
        const q = Math.floor(event.offsetY / size), k = Math.floor(event.offsetX / size);
        if (weights[q]?.[k] != null && k <= q) says.textContent = `${visible(tokens[q])} looks at ${visible(tokens[k])}: ${percent(weights[q][k])}`;
      } });
    const draw = canvas.getContext("2d");
    const most = Math.max(...weights.flatMap((row, q) => row.slice(1, q + 1)), 0.01);  // the first token takes what is left over
    for (let q = 0; q < n; q++) for (let k = 0; k <= q; k++) {
      draw.fillStyle = `rgba(0, 114, 178, ${Math.max(0.04, Math.min(1, weights[q][k] / most)).toFixed(3)})`;
      draw.fillRect(k * size, q * size, size - (size > 6), size - (size > 6));
    }
    const last = weights[n - 1].map((w, k) => [w, k]).sort((a, b) => b[0] - a[0]).slice(0, 5);
    attention.replaceChildren(el("h4", {}, `What layer ${layer}, head ${head} looks at`), canvas, says,
      el("p", {}, "The last token looks at ", last.map(([w, k]) => el("span", { class: "seen" }, `${visible(tokens[k])} ${percent(w)} `))));
  }

  function segment({ text, marked, drift, why }) {
    const node = el(marked ? "mark" : "span", {}, text);
    if (drift > 0.02) {
      node.style.setProperty("--drift", `${Math.min(45, 8 + 37 * drift).toFixed(0)}%`);
      node.classList.add("drift");
      node.title = `drift ${drift.toFixed(2)} nats; unsteered: ${why}`;
    }
    return node;
  }

  function drawStatus() {
    const { busy, text, progress: share, error } = model.get("status");
    clearTimeout(waiting);
    if (!busy) sayWhich();
    stop.disabled = !busy;
    progress.hidden = !busy;
    if (share == null) progress.removeAttribute("value"); else progress.value = share;
    if (status.textContent !== text) status.textContent = text;
    problem.textContent = error;
  }

  function drawDoses() {
    const doses = model.get("doses");
    charts.hidden = table.hidden = !doses.length;
    if (!doses.length) return;
    drawCharts();
    table.replaceChildren(scores(doses));
  }

  function drawCharts() {
    const doses = model.get("doses");
    if (!doses.length) return;
    const series = doses.map((d, i) => ({ name: d.name, rows: d.rows, safe: d.safe, now: rows[d.name]?.value() ?? 0, dash: ["", "6 3", "2 3", "8 3 2 3", "1 3"][i % 5] }));
    const drifts = doses.flatMap(d => d.rows.map(r => r.drift));
    const top = Math.max(2 * about.limit, Math.min(6 * about.limit, Math.max(...drifts)));
    const most = Math.max(...doses.flatMap(d => d.rows.map(r => r.strength)));
    const width = drawnWidth = chartWidth();
    // Ranges of several places differ many times over: what they share is drift.
    const several = series.length > 1, rate = { key: "trait_rate", top: 1, ticks: [0, .25, .5, .75, 1], say: percent };
    charts.replaceChildren(
      several ? chart("Coherent replies with the trait, at equal drift", width, series, top, { ...rate, along: "drift" })
        : chart("Coherent replies with the trait", width, series, most, rate),
      chart("Drift, nats per token", width, series, several ? 1 : most, {
        along: several ? "share" : "strength", key: "drift", top, ticks: [0, top / 4, top / 2, 3 * top / 4, top], say: x => x.toFixed(2), limit: about.limit,
      }));
  }

  function chartWidth() {
    const { gridTemplateColumns } = getComputedStyle(charts);
    return Math.max(240, parseFloat(gridTemplateColumns) || 400);
  }

  const AXES = { strength: "strength (× residual norm)", drift: "drift, nats per token", share: "strength, as a share of each place's range" };
  function chart(title, width, series, most, { key, top, ticks, say, limit, along = "strength" }) {
    const reached = ({ rows }, r) => along === "share" ? r.strength / rows.at(-1).strength : Math.min(r[along], most);
    const W = width, H = 230, left = 46, right = 10, topEdge = 18, bottom = 42;
    const x = v => left + (W - left - right) * v / most;
    const y = v => H - bottom - (H - bottom - topEdge) * Math.min(v, top) / top;
    const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
    const word = (text, at, anchor = "middle") => svg("text", { ...at, "text-anchor": anchor }, text);
    const reach = along === "drift" ? about.limit : Math.min(...series.map(s => along === "share" ? s.safe / s.rows.at(-1).strength : s.safe), most);
    const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img",
      "aria-label": `${title} against strength; the table below holds the numbers` },
      svg("rect", { x: x(0), y: topEdge, width: x(reach) - x(0), height: H - bottom - topEdge, class: "reach" }),
      ticks.map(t => [line(left, y(t), W - right, y(t), "rule"), word(say(t), { x: left - 8, y: y(t) + 4 }, "end")]),
      [0, .25, .5, .75, 1].map(t => word(+(t * most).toFixed(2), { x: x(t * most), y: H - bottom + 18 })),
      word(AXES[along], { x: (left + W - right) / 2, y: H - 4 }),
      limit ? line(left, y(limit), W - right, y(limit), "limit") : null);
    for (const [k, one] of series.entries()) {
      const { name, rows, dash } = one, now = along === "share" ? one.now / rows.at(-1).strength : along === "drift" ? -1 : one.now;
      const aside = 4 * (k - (series.length - 1) / 2);  // so that whiskers stand beside each other
      const style = hue(name), points = rows.map(r => [x(reached(one, r)), y(r[key])]);
      if (now >= 0 && now <= most) picture.append(put(line(x(now), topEdge, x(now), H - bottom, "now"), { style }, []));
      if (key === "trait_rate" && series.length < 3)  // of more the whiskers hide the lines; the table has them
        for (const r of rows) picture.append(put(line(x(reached(one, r)) + aside, y(r.low_rate), x(reached(one, r)) + aside, y(r.high_rate), "whisker"), { style }, []));
      picture.append(svg("polyline", { points: points.join(" "), style, "stroke-dasharray": dash }));
      points.forEach(([cx, cy], i) => {
        const beyond = rows[i][key] > top * 1.0001;  // an arrow and the number, for the point lies above the chart
        const shape = beyond ? svg("path", { d: `M ${cx - 5} ${cy + 6} L ${cx} ${cy - 3} L ${cx + 5} ${cy + 6} Z`, style, class: "beyond" }) : svg("circle", { cx, cy, r: 4, style });
        shape.append(svg("title", {}, `${name}\nstrength ${rows[i].strength.toFixed(2)}: ${say(rows[i][key])}`));
        picture.append(shape);
        if (beyond) picture.append(word(say(rows[i][key]), { x: Math.min(cx, W - 16), y: cy - 5 - 11 * (k % 2), class: "beyond" }));
      });
    }
    return el("figure", {}, el("figcaption", {}, title), picture);
  }

  function scores(doses) {
    const heads = ["locus", "natural difference, × norm", "advised strength, × norm", "coherent, with the trait", "coherent", "drift, nats"];
    const body = doses.map(d => {
      const best = d.rows.find(r => r.strength === d.best);
      const locus = model.get("loci").find(l => l.name === d.name);
      if (!locus) return null;
      return el("tr", {}, el("th", { scope: "row" }, swatch(d.name), where(locus), el("small", {}, at(locus))),
        el("td", {}, d.fraction.toFixed(2)), el("td", {}, best.strength.toFixed(2)),
        el("td", {}, percent(best.trait_rate), el("small", {}, `${percent(best.low_rate)} to ${percent(best.high_rate)}`)),
        el("td", {}, percent(best.coherent_rate)), el("td", {}, best.drift.toFixed(2)));
    });
    const unsteered = percent(doses[0].rows.find(r => r.strength === 0).trait_rate);
    return el("table", {},
      el("caption", {}, `At the least strength that does nearly its best within ${about.limit} nats of drift: ${about.prompts} prompts, 95 % intervals. Unsteered: ${unsteered}.`),
      el("thead", {}, el("tr", {}, heads.map(h => el("th", { scope: "col" }, h)))), el("tbody", {}, body));
  }

  function drawKept() {
    const { path, code } = model.get("kept");
    kept.hidden = !path;
    if (!path) return;
    if (!code) return kept.replaceChildren(el("p", {}, "Saved as ", el("code", {}, path), "."));
    const copy = el("button", { onclick: async () => {
      try {
        await navigator.clipboard.writeText(code);
        copy.textContent = "Copied";
      } catch {  // no clipboard: a page without https, or a host that forbids it
        getSelection().selectAllChildren(kept.querySelector("pre"));
        copy.textContent = "Selected: copy it by keyboard";
      }
    } }, "Copy");
    kept.replaceChildren(el("p", {}, "Saved as ", el("code", {}, path), ". The same without the widget:"),
      el("pre", { tabindex: 0, "aria-label": "Python code" }, el("code", {}, code)), copy);
  }

  const history = el("div", { class: "talk", hidden: true, "aria-label": "The chat so far" });
  const attention = el("section", { class: "attention", hidden: true, "aria-label": "Attention" });
  const togetherField = el("label", { class: "check", hidden: true }, together, " all of them together as one more card");
  root.append(el("div", { class: "star-explorer" },
    el("header", {}, el("h3", {}, `${about.title} in ${about.model}`),
      el("p", { class: "soft" }, "Click a cell to steer there and hear the model change; click more to compare. ★ is where drift buys most."), believe),
    el("div", { class: "parts" },
      el("section", { class: "where", "aria-label": "Where the trait is carried" }, tabs,
        el("div", { class: "controls" }, field("Estimator", estimator), field("Form", form), field("Pairs", pair), componentField),
        map, legend, attention),
      el("section", { class: "steering", "aria-label": "What steering does" }, history, field("Prompt", prompt), note,
        el("div", { class: "controls" }, el("div", { class: "buttons" }, go, reroll, stop, save),
          el("details", { class: "more" }, el("summary", {}, "System prompt, seed, length"),
            field("System prompt", system),
            el("div", { class: "controls" }, field("Seed", seed), field("Replies", seeds), field("Temperature", temperature), field("Tokens", length)))),
        el("div", { class: "state" }, progress, status, problem), chips, togetherField),
      el("section", { class: "written", "aria-label": "Replies" }, replies,
        el("p", { class: "soft key" }, el("span", {}, el("mark", {}, "marked"), " trait marker"),
          el("span", {}, el("span", { class: "drift", style: "--drift: 45%" }, "tinted"), " drift: how far this token is from what the unsteered model would write; point at it to read what that is"))),
      kept,
      el("section", { class: "measures", "aria-label": "Dose–response and scores" }, charts, table))));

  const colours = root.firstChild.style;
  for (const [mode, [lowEnd, low, middle, high, highEnd]] of Object.entries(about.scales))
    for (const [name, value] of Object.entries({ "low-end": lowEnd, low, middle, high, "high-end": highEnd }))
      colours.setProperty(`--${mode}-${name}`, value);
  colours.setProperty("--drifting", about.colours.drift);

  const drawings = {
    map: [drawMap, drawChips], loci: [drawLoci], replies: [drawReplies], doses: [drawDoses], status: [drawStatus], kept: [drawKept], talk: [drawTalk], pattern: [drawPattern], settings: [sayPrompt],
  };
  const each = what => Object.entries(drawings).forEach(([name, all]) => all.forEach(draw => what(`change:${name}`, draw)));
  each((name, draw) => model.on(name, draw));
  // Charts are drawn to their width, so that words keep their size.
  const resized = new ResizeObserver(() => { if (chartWidth() !== drawnWidth) drawCharts(); });
  resized.observe(charts);
  hideTip();
  open(tab);
  drawLoci();
  drawStatus();
  drawKept();
  drawTalk();
  drawPattern();
  sayPrompt();
  if (!model.get("replies").length) send("begin");
  return () => {
    each((name, draw) => model.off(name, draw));
    resized.disconnect();
    clearTimeout(waiting);
  };
}

export default { render };
