// Asks for live.json once a second and shows it. Text is only ever set as text: names come from strangers' files.
"use strict";

const EVERY_MS = 1000;
const SHOWN_REQUESTS = 24;
const KEPT_POINTS = 600;
const SVG = "http://www.w3.org/2000/svg";
const UNKNOWN = "–";
const byId = (id) => document.getElementById(id);
let focus = null;  // the server that was chosen
let known = null;  // the last document: what comes after it is asked for
let paused = false;
let drawnRequests = null;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function drawn(name, attributes, children = []) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const number = (value) => value === null || value === undefined ? UNKNOWN : Math.round(value).toLocaleString("en");
const rate = (value) => value === null || value === undefined ? UNKNOWN : value >= 100 ? number(value) : value.toFixed(1);
const percent = (value) => value === null || value === undefined ? UNKNOWN : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

function seconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1000).toPrecision(3)} ms`;
  if (value < 120) return `${value.toPrecision(3)} s`;
  return value < 7200 ? `${(value / 60).toFixed(0)} min` : `${(value / 3600).toFixed(1)} h`;
}

function bytes(value) {
  if (value === null || value === undefined) return UNKNOWN;
  let unit = 0;
  while (value >= 1000 && unit < 4) { value /= 1024; unit += 1; }
  return `${unit ? value.toPrecision(3) : value} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

function bar(parts, whole, label) {
  const made = element("div", null, "bar");
  fill(made, parts, whole, label);
  return made;
}

function fill(made, parts, whole, label) {
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", label);
  made.replaceChildren(...parts.filter(([, value]) => value > 0).map(([name, value]) => {
    const part = element("i", null, name);
    part.style.width = `${Math.min(100, 100 * value / whole)}%`;
    return part;
  }));
}

function rows(body, cells) {
  body.replaceChildren(...cells.map((row) => {
    const made = element("tr");
    row.forEach((cell, index) => {
      const place = element(index ? "td" : "th");
      if (!index) place.scope = "row";
      if (cell instanceof Node) { place.append(cell); if (cell instanceof Element && (cell.matches(".bar, svg"))) place.className = "wide"; }
      else if (Array.isArray(cell)) { place.textContent = cell[0]; place.className = cell[1]; }
      else place.textContent = cell;
      made.append(place);
    });
    return made;
  }));
}

function pairs(list, entries) {
  list.replaceChildren(...entries.filter((entry) => entry[1] !== null).map(([name, value, small]) => {
    const both = element("div");
    const shown = element("dd", value);
    if (small) shown.append(" ", element("small", small));
    both.append(element("dt", name), shown);
    return both;
  }));
}

function facts(list, entries) {
  list.replaceChildren(...entries.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

// Values over time as stacked areas, or as one line; a value that is not known leaves a gap.
function chart(place, label, times, series, limit, stacked, unit) {
  const known = series.flatMap((one) => one.values).filter((value) => value !== null);
  if (times.length < 2 || !known.length) {
    place.replaceChildren(element("p", `${label}: nothing recorded yet`, "note"));
    return;
  }
  const begin = times[0], span = times[times.length - 1] - begin || 1;
  const sums = times.map((_, i) => stacked ? series.reduce((sum, one) => sum + (one.values[i] || 0), 0) : series[0].values[i] || 0);
  const top = Math.max(limit || 0, ...sums, 1e-9) * 1.05;
  const x = (i) => (100 * (times[i] - begin) / span).toFixed(2);
  const y = (value) => (100 - 100 * value / top).toFixed(2);
  const below = times.map(() => 0);
  const shapes = [];
  for (const one of series) {
    for (const run of runs(one.values)) {
      const upper = run.map((i) => `${x(i)},${y((stacked ? below[i] : 0) + one.values[i])}`);
      if (stacked) {
        const lower = run.map((i) => `${x(i)},${y(below[i])}`).reverse();
        shapes.push(drawn("polygon", { class: `area-${one.name}`, points: [...upper, ...lower].join(" ") }));
        run.forEach((i) => { below[i] += one.values[i]; });
      } else shapes.push(drawn("polyline", { class: "line", points: upper.join(" ") }));
    }
  }
  if (limit) shapes.push(drawn("line", { class: "limit", x1: 0, x2: 100, y1: y(limit), y2: y(limit) }));
  const last = sums[sums.length - 1];
  const picture = drawn("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": `${label}: now ${number(last)} ${unit}, at most ${number(Math.max(...sums))}` }, shapes);
  const ends = element("div", null, "ends");
  ends.append(element("span", `${seconds(span)} ago`), element("span", `${label}, top ${rate(top / 1.05)} ${unit}`), element("span", "now"));
  place.replaceChildren(picture, ends);
}

function runs(values) {
  const found = [];
  values.forEach((value, i) => {
    if (value === null) return;
    const last = found[found.length - 1];
    if (last && last[last.length - 1] === i - 1) last.push(i); else found.push([i]);
  });
  return found;
}

function phases(request, longest) {
  const parts = request.prefill_s === null && request.decode_s === null
    ? [["unknown", request.ended_at - request.arrived_at]]
    : [["queue", request.queue_s], ["prefill", request.prefill_s], ["decode", request.decode_s]];
  let at = 0;
  const drawnParts = parts.filter(([, value]) => value).map(([name, value]) => {
    const part = drawn("rect", { class: name, x: 100 * at / longest, y: 0, width: Math.max(0.3, 100 * value / longest), height: 10 });
    at += value;
    return part;
  });
  const label = parts.map(([name, value]) => `${name} ${seconds(value)}`).join(", ");
  const picture = drawn("svg", { class: "phases", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": label }, drawnParts);
  picture.append(drawn("title", {}));
  picture.lastChild.textContent = label;
  return picture;
}

function showState(server) {
  const pill = byId("state");
  const state = server.state || (server.up === null ? "log only" : server.up ? "up" : "down");
  pill.textContent = server.stale ? `${state}, busy: figures are old` : state;
  pill.className = `pill ${server.up === false ? (state === "starting" ? "warn" : "bad") : server.stale ? "warn" : server.up ? "good" : ""}`;
}

function showTiles(data, server) {
  const cache = server.kv_cache, summary = data.summary;
  const busy = server.slots === null ? null : server.slots.filter((slot) => slot.busy).length;
  const prompt = server.counters.prompt_tokens_total, cached = server.counters.prompt_tokens_cached_total;
  const asked = prompt === undefined || cached === undefined ? 0 : prompt + cached;
  const failed = summary.requests.error + summary.requests.context_full;
  pairs(byId("tiles"), [
    ["Running", number(busy), server.slots === null ? "" : `of ${server.slots.length} slots`],
    ["Waiting", number(server.deferred)],
    ["Decoding", rate(server.decode_rate), "tokens/s"],
    ["KV headroom", cache && cache.headroom !== null && cache.capacity ? percent(cache.headroom / cache.capacity) : UNKNOWN],
    ["First token, p95", seconds(summary.time_to_first_token_s.p95)],
    ["Per token, p95", seconds(summary.time_per_output_token_s.p95)],
    ["Requests", number(summary.requests.total), failed ? `${failed} failed` : ""],
    ["Prompt from cache", asked ? percent(cached / asked) : UNKNOWN],
  ]);
}

function showCache(data, server) {
  const cache = server.kv_cache;
  if (!cache || cache.active === null) {
    byId("kv-text").textContent = server.state === "sleeping" ? "The server sleeps; it is left alone." : "Not known for this server.";
    byId("kv-bar").hidden = true;
  } else {
    const of = cache.capacity === null ? "" : ` of ${number(cache.capacity)} tokens`;
    const pool = cache.unified === null ? "" : cache.unified ? ", one pool for all slots" : ", each slot its own share";
    const text = `${number(cache.active)} active and ${number(cache.cached)} cached${of}${pool}; room for ${number(cache.headroom)} more.`;
    byId("kv-text").textContent = text;
    byId("kv-bar").hidden = cache.capacity === null;
    if (cache.capacity) fill(byId("kv-bar"), [["active", cache.active], ["cached", cache.cached || 0]], cache.capacity, text);
  }
  const past = data.history;
  chart(byId("kv-chart"), "Tokens in the KV cache", past.at,
    [{ name: "active", values: past.active }, { name: "cached", values: past.cached }], cache ? cache.capacity : null, true, "tokens");
  chart(byId("rate-chart"), "Decoding", past.at, [{ name: "rate", values: past.decode_rate }], null, false, "tokens/s");
  chart(byId("busy-chart"), "Busy slots", past.at, [{ name: "active", values: past.busy }], server.slots ? server.slots.length : null, true, "slots");
  const parts = [...new Set(cache ? [...Object.keys(cache.planned_bytes), ...Object.keys(cache.reported_bytes), ...Object.keys(cache.used_bytes)] : [])];
  rows(byId("bytes"), parts.map((part) => [part, bytes(cache.planned_bytes[part]), bytes(cache.reported_bytes[part]), bytes(cache.used_bytes[part])]));
  byId("h-bytes").parentElement.hidden = !parts.length;
}

function showSlots(server) {
  rows(byId("slots"), (server.slots || []).map((slot) => {
    const size = slot.context_size, held = slot.context_tokens;
    const prompt = slot.busy && slot.prompt_computed !== null ? `${number(slot.prompt_computed)}${slot.prompt_cached ? ` + ${number(slot.prompt_cached)} cached` : ""}` : UNKNOWN;
    return [
      String(slot.id), slot.busy ? "busy" : "idle",
      size && held !== null ? bar([[slot.busy ? "active" : "cached", held]], size, `${number(held)} of ${number(size)} tokens`) : UNKNOWN,
      size ? `${number(held)} / ${number(size)}` : number(held), prompt, slot.busy ? number(slot.decoded) : UNKNOWN,
      slot.busy ? rate(slot.decode_rate) : UNKNOWN,
    ];
  }));
  byId("h-slots").parentElement.hidden = !server.slots;
}

function showRequests(data, server) {
  const mine = data.requests.filter((request) => request.server === server.key).slice(-SHOWN_REQUESTS).reverse();
  showTimes(data.summary);
  // Drawn anew only when there is something new: a button that has the focus keeps it.
  const signature = mine.map((request) => `${request.slot} ${request.task} ${request.ended_at}`).join();
  if (signature === drawnRequests) return;
  drawnRequests = signature;
  const longest = Math.max(...mine.map((request) => request.ended_at - request.arrived_at), 1e-6);
  rows(byId("requests"), mine.map((request) => [
    clock(request.ended_at), [request.outcome.replace("_", " "), request.outcome], phases(request, longest),
    seconds(request.ended_at - request.arrived_at), seconds(request.ttft_s), rate(request.tokens_per_second),
    request.prompt_tokens === null ? UNKNOWN : `${number(request.prompt_tokens)} (${number(request.prompt_cached)})`,
    number(request.generated), request.trace_id ? traceButton(request.trace_id) : UNKNOWN,
  ]));
  byId("h-requests").textContent = mine.length ? "Last requests" : "Last requests: none yet";
}

function showTimes(summary) {
  rows(byId("times"), [["Waited for a slot", summary.queue_s], ["Time to first token", summary.time_to_first_token_s],
    ["Time per output token", summary.time_per_output_token_s], ["End to end", summary.end_to_end_s]]
    .map(([name, one]) => [name, seconds(one.p50), seconds(one.p95), seconds(one.p99)]));
}

function traceButton(id) {
  const made = element("button", id.slice(0, 8));
  made.type = "button";
  made.title = `Copy the trace's id, ${id}`;
  made.addEventListener("click", () => copy(id, made));
  return made;
}

function showModel(server) {
  const shape = server.shape || {}, own = server.process || {};
  facts(byId("model"), [
    ["Model", server.model], ["Name", shape.name], ["Architecture", shape.architecture], ["Attention", shape.attention],
    ["Layers", shape.layers && number(shape.layers)], ["Parameters", shape.parameters && number(shape.parameters)],
    ["Weights", shape.weights_bytes && `${bytes(shape.weights_bytes)}${shape.file_type ? `, ${shape.file_type}` : ""}`],
    ["Trained context", shape.context_length && `${number(shape.context_length)} tokens`],
    ["llama.cpp", [server.backend, server.build].filter(Boolean).join(" ")],
    ["Running since", server.started_at && new Date(server.started_at * 1000).toLocaleString("en-GB")],
    ["Loaded in", server.loading_s && seconds(server.loading_s)], ["Restarts", server.restarts],
    ["Memory", own.memory_bytes && bytes(own.memory_bytes)], ["CPU time", own.cpu_s && seconds(own.cpu_s)],
    ["Settings", Object.entries(server.settings).map(([name, value]) => `${name}=${value}`).join("  ")],
  ]);
}

function showGpus(devices) {
  byId("h-gpu").parentElement.hidden = !devices.length;
  rows(byId("gpus"), devices.map((gpu) => [
    gpu.name, percent(gpu.utilization), `${bytes(gpu.memory_used)} of ${bytes(gpu.memory_limit)}`,
    gpu.power_w === null ? UNKNOWN : `${number(gpu.power_w)} W`,
    gpu.temperature_c === null ? UNKNOWN : `${number(gpu.temperature_c)} °C`,
    gpu.throttled_by === null ? UNKNOWN : gpu.throttled_by.join(", ") || "nothing",
  ]));
}

function showAround(data) {
  const list = byId("alarms");
  const recent = data.alarms.filter((alarm) => data.taken_at - alarm.at < 600).reverse();
  list.replaceChildren(...recent.map((alarm) => {
    const made = element("li");
    made.append(element("time", clock(alarm.at)), alarm.text);
    return made;
  }));
  list.hidden = !recent.length;
  byId("prometheus").textContent = `scrape_configs:\n  - job_name: llamatel\n    static_configs:\n      - targets: ["${location.host}"]\n`;
  byId("otlp").textContent = data.about.otlp
    ? `OTEL_EXPORTER_OTLP_ENDPOINT=${data.about.otlp}   # as it is set now\n`
    : "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317   # not set now: nothing is sent\n";
  byId("about").textContent = `llamatel ${data.about.version || ""}, ${clock(data.taken_at)}`;
}

function choose(data) {
  const select = byId("server");
  const keys = data.servers.map((server) => server.key);
  if ([...select.options].map((option) => option.value).join("\n") !== keys.join("\n")) {
    select.replaceChildren(...keys.map((key) => { const option = element("option", key); option.value = key; return option; }));
  }
  select.value = data.focus;
  byId("chooser").hidden = keys.length < 2;
  byId("name").hidden = keys.length > 1;
}

function show(data) {
  const server = data.servers.find((one) => one.key === data.focus);
  byId("empty").hidden = Boolean(server);
  byId("content").hidden = !server;
  showAround(data);
  for (const id of ["name", "state"]) byId(id).hidden = !server;
  if (!server) {
    byId("chooser").hidden = true;
    document.title = "llamatel";
    return;
  }
  choose(data);
  byId("name").textContent = server.key;
  document.title = `${server.model || server.key} · llamatel`;
  showState(server);
  showTiles(data, server);
  showCache(data, server);
  showSlots(server);
  showRequests(data, server);
  showModel(server);
  showGpus(data.devices);
}

// A document that says only what is new, with what was known before.
function joined(before, data) {
  if (data.whole) return data;
  for (const [name, values] of Object.entries(before.history)) {
    data.history[name] = [...values, ...data.history[name]].slice(-KEPT_POINTS);
  }
  data.requests = [...before.requests, ...data.requests].slice(-SHOWN_REQUESTS);
  return data;
}

async function look() {
  if (!paused && !document.hidden) {
    const trouble = byId("trouble");
    try {
      const server = focus ?? known?.focus;
      const after = known && server === known.focus ? `&after=${known.cursor}` : "";
      const answer = await fetch(server ? `live.json?server=${encodeURIComponent(server)}${after}` : "live.json");
      if (!answer.ok) throw new Error(await answer.text());
      known = joined(known, await answer.json());
      show(known);
      trouble.hidden = true;
    } catch (error) {
      trouble.textContent = `No answer from llamatel (${error.message}). The figures below are old; it is asked again every second.`;
      trouble.hidden = false;
    }
  }
  setTimeout(look, EVERY_MS);
}

async function copy(text, button) {
  const before = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
  catch { button.textContent = "Not allowed here"; }
  setTimeout(() => { button.textContent = before; }, 1200);
}

byId("server").addEventListener("change", (event) => { focus = event.target.value; });
byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.setAttribute("aria-pressed", String(paused));
  event.target.textContent = paused ? "Go on" : "Pause";
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(byId(button.dataset.copy).textContent, button));
}
look();
