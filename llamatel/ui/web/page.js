// Polls live.json once a second and shows it.
import { bar, chart, drawn, element, facts, fill, put, rows } from "./draw.js";
import { UNKNOWN, bytes, clock, isUnknown, number, percent, rate, seconds } from "./format.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 20000;
const SHOWN_REQUESTS = 24;
const SHOWN_ALARMS = 5;
const KEPT_POINTS = 600;
const CHOSEN = "#server=";
const byId = (id) => document.getElementById(id);
const orders = {  // sort keys of the servers, ascending; null is last
  server: () => 0,
  state: (row) => ({ down: 0, warned: 1 })[row.trouble] ?? 2,
  running: (row) => negative(row.busy),
  waiting: (row) => negative(row.deferred),
  rate: (row) => negative(row.decode_rate),
  headroom: (row) => row.headroom,
  late: (row) => negative(row.ttft_p95_s),
  failed: (row) => negative(row.failed),
  restarts: (row) => negative(row.restarts),
};
const negative = (value) => value === null ? null : -value;
let focus = null;  // key of the selected server
let known = null;  // the last document; the next request is for changes since then
let order = "state";
let search = "";
let paused = false;
let timer = null;
let polling = false;

const stateOf = (server) => server.state || (server.up === null ? "log only" : server.up ? "up" : "down");

function levelOf(server) {
  if (server.state === "failed" || server.state === "stalled") return "bad";
  if (server.up === false) return server.state === "starting" ? "warn" : "bad";
  return server.stale ? "warn" : server.up ? "good" : "";
}

// It has no model itself, and other keys share its address.
const isRouter = (data, key) => !key.includes(" ") && data.keys.some((other) => other.startsWith(`${key} `));

function showServers(data) {
  const all = data.keys.map((key) => data.overview.get(key)).filter(Boolean);
  byId("fleet").hidden = data.keys.length < 2;
  const troubled = all.filter((row) => row.trouble).length;
  document.title = `${troubled ? `(${troubled}!) ` : ""}${data.focus ?? ""} · llamatel`;
  if (data.keys.length < 2) return;
  const sum = (name) => all.reduce((total, row) => total + (row[name] ?? 0), 0);
  const count = (trouble) => all.filter((row) => row.trouble === trouble).length;
  const routers = new Set(data.keys.filter((key) => isRouter(data, key)));
  const models = all.filter((row) => row.key.includes(" ") && routers.has(row.key.slice(0, row.key.indexOf(" ")))).length;
  put(byId("fleet-text"), [
    `${all.length - models} watched`, models ? `${number(models)} models of routers` : "", count("down") ? `${count("down")} down` : "", count("warned") ? `${count("warned")} with an alarm in the last ten minutes` : "",
    `${number(sum("busy"))} of ${number(sum("slots"))} slots busy`, `${number(sum("deferred"))} waiting`, `${rate(sum("decode_rate"))} tok/s in total`,
  ].filter(Boolean).join(", "));
  for (const button of document.querySelectorAll("[data-order]")) {
    const by = button.dataset.order === order;
    if (by) button.parentElement.setAttribute("aria-sort", ["server", "headroom"].includes(order) ? "ascending" : "descending");
    else button.parentElement.removeAttribute("aria-sort");
  }
  const value = (row) => orders[order](row) ?? Infinity;
  // Columns without any value are left out.
  const named = new Set(Object.keys(orders).filter((name) => ["server", "state"].includes(name) || all.some((row) => orders[name](row) !== null)));
  for (const button of document.querySelectorAll("[data-order]")) button.parentElement.hidden = !named.has(button.dataset.order);
  const words = search.split(" "), text = (row) => `${row.key} ${row.labels} ${stateOf(row)} ${row.trouble ?? ""}`.toLowerCase();
  const found = all.filter((row) => words.every((word) => text(row).includes(word)));
  rows(byId("servers"), found.sort((a, b) => value(a) - value(b) || 0).map((row) => {
    const cells = {
      server: serverLink(data, row.key, row.labels),
      state: [row.stale ? "busy, stale" : row.trouble === "down" && row.down_since ? `${stateOf(row)} for ${seconds(Math.max(0, data.taken_at - row.down_since))}` : stateOf(row), row.trouble === "warned" && levelOf(row) === "good" ? "warn" : levelOf(row)],
      running: row.slots === null ? UNKNOWN : `${row.busy} / ${row.slots}`,
      waiting: [number(row.deferred), row.deferred ? "warn" : ""],
      rate: rate(row.decode_rate),
      headroom: [percent(row.headroom), row.headroom !== null && row.headroom < 0.1 ? "bad" : ""],
      late: seconds(row.ttft_p95_s),
      failed: row.requests === null ? UNKNOWN : [`${number(row.failed)} of ${number(row.requests)}`, row.failed ? "bad" : ""],
      restarts: [number(row.restarts), row.restarts ? "warn" : ""],
    };
    return [row.key, ...Object.entries(cells).filter(([name]) => named.has(name)).map(([, cell]) => cell)];
  }));
}

function serverLink(data, key, labels) {
  const [address, ...model] = key.split(" ");
  const made = element("a");
  made.href = `${CHOSEN}${encodeURIComponent(key)}`;
  made.title = key;
  if (key === data.focus) made.setAttribute("aria-current", "true");
  made.append(element("span", address, "address"), model.length ? ` ${model.join(" ")}` : isRouter(data, key) ? " (router)" : "");
  if (labels) made.append(" ", element("span", labels, "labels"));
  return made;
}

function showState(server) {
  const pill = byId("state");
  put(pill, server.stale ? `${stateOf(server)}, busy: values are stale` : stateOf(server));
  pill.className = `pill ${levelOf(server)}`;
}

function showTiles(data, server, row) {
  const cache = server.kv_cache, summary = data.summary;
  const prompt = server.counters.prompt_tokens_total, cached = server.counters.prompt_tokens_cached_total;
  const promptTokens = isUnknown(prompt) || isUnknown(cached) ? 0 : prompt + cached;
  const share = cache && cache.headroom !== null && cache.capacity ? cache.headroom / cache.capacity : null;
  const seen = row.requests !== null, of = (times) => times.n ? `of ${number(times.n)} requests` : "none yet";
  const tiles = [
    ["Running", number(row.busy), row.slots === null ? "requests" : `of ${row.slots} slots`],
    ["Waiting", number(server.deferred), "for a slot", server.deferred ? "warn" : ""],
    ["Decoding", rate(server.decode_rate), "tok/s"],
    ["KV headroom", percent(share), share === null ? (cache && cache.active !== null ? "pool size unknown" : "unknown") : `${number(cache.headroom)} tokens`, share !== null && share < 0.1 ? "bad" : ""],
    ["First token, p95", seconds(summary.time_to_first_token_s.p95), of(summary.time_to_first_token_s), "", !seen],
    ["Per token, p95", seconds(summary.time_per_output_token_s.p95), of(summary.time_per_output_token_s), "", !seen],
    ["Requests", number(row.requests), row.failed ? `${number(row.failed)} failed` : "none failed", row.failed ? "bad" : "", !seen],
    [
      "Prompt cached",
      promptTokens ? percent(cached / promptTokens) : UNKNOWN,
      promptTokens ? `of ${number(promptTokens)} tokens` : "no prompt yet",
    ],
    ...drafting(server.counters),
  ];
  put(byId("tiles"), ...tiles.filter((tile) => !tile[4]).map(([name, value, small, level]) => {
    const made = element("div", null, level);
    made.append(element("dt", name), element("dd", value), element("dd", small, "small"));
    return made;
  }));
}

function drafting(counters) {
  const steps = counters.spec_decode_num_drafts_total, accepted = counters.spec_decode_num_accepted_tokens_total;
  if (!steps) return [];
  const position = (name) => /^spec_decode_num_accepted_tokens_per_pos_total\{position="(\d{1,3})"\}$/.exec(name);
  const shares = Object.keys(counters).filter(position).sort((a, b) => position(a)[1] - position(b)[1]).map((name) => percent(counters[name] / steps));
  const small = `${(1 + accepted / steps).toFixed(2)} tokens a step${shares.length ? `; by position ${shares.slice(0, 8).join(", ")}` : ""}`;
  return [["Drafts accepted", percent(accepted / counters.spec_decode_num_draft_tokens_total), small]];
}

function whyNoCache(server) {
  if (server.state === "sleeping") return "The server is sleeping and is not polled.";
  if (server.up === false) return `The server is ${server.state === "starting" ? "starting" : "down"}: its KV cache is unknown.`;
  return "Unknown for this server.";
}

function showCache(data, server) {
  const cache = server.kv_cache, past = data.history;
  const active = cache && cache.active !== null;
  byId("kv-bar").hidden = !active || !cache.capacity;
  let text = whyNoCache(server);
  if (active && !cache.capacity) text = `${number(cache.active)} active and ${number(cache.cached)} cached tokens. How many there is room for is not known without the server's log.`;
  else if (active) {
    const pool = cache.unified === null ? "" : cache.unified ? ", one pool for all slots" : ", each slot its own share";
    text = `${number(cache.active)} active and ${number(cache.cached)} cached of ${number(cache.capacity)} tokens${pool}; room for ${number(cache.headroom)} more.`;
    fill(byId("kv-bar"), [["active", cache.active], ["cached", cache.cached || 0]], cache.capacity, text);
  }
  put(byId("kv-text"), text);
  chart(byId("kv-chart"), {
    label: "Tokens", times: past.at, stacked: true, limit: cache ? cache.capacity : null, limited: "room for",
    series: [{ name: "active", called: "active", values: past.active }, { name: "cached", called: "cached", values: past.cached }],
  });
  chart(byId("rate-chart"), { label: "Decoding", times: past.at, show: rate, unit: " tok/s", series: [{ name: "rate", values: past.decode_rate }] });
  chart(byId("busy-chart"), {
    label: "Requests", times: past.at, stacked: true, limit: server.slots ? server.slots.length : null, limited: "slots:",
    series: [{ name: "active", called: "running", values: past.busy }, { name: "queue", called: "waiting", values: past.deferred }],
  });
  const parts = [...new Set(cache ? [...Object.keys(cache.planned_bytes), ...Object.keys(cache.reported_bytes), ...Object.keys(cache.used_bytes)] : [])];
  rows(byId("bytes"), parts.map((part) => [part, part, bytes(cache.planned_bytes[part]), bytes(cache.reported_bytes[part]), bytes(cache.used_bytes[part])]));
  byId("h-bytes").parentElement.hidden = !parts.length;
}

function showSlots(server) {
  rows(byId("slots"), (server.slots || []).map((slot) => {
    const size = slot.context_size, held = slot.context_tokens, working = (shown) => slot.busy ? shown : UNKNOWN;
    return [
      String(slot.id), String(slot.id), [slot.busy ? "busy" : "idle", slot.busy ? "good" : "soft"],
      size && held !== null ? bar([[slot.busy ? "active" : "cached", held]], size, `${number(held)} of ${number(size)} tokens`) : UNKNOWN,
      size ? `${number(held)} / ${number(size)}` : number(held), working(number(slot.prompt_computed)),
      working(number(slot.prompt_cached)), working(number(slot.decoded)), working(rate(slot.decode_rate)),
    ];
  }));
  byId("h-slots").parentElement.hidden = !server.slots;
}

function showRequests(data, server, row) {
  const mine = data.requests.filter((request) => request.server === server.key).slice(-SHOWN_REQUESTS).reverse();
  const seen = row.requests !== null;
  put(byId("requests-text"), mine.length ? "" : seen ? "None yet."
    : "No request log: requests need llamatel serve, or llamatel attach with the server's --log.");
  byId("requests-text").hidden = mine.length > 0;
  byId("requests-table").hidden = !mine.length;
  byId("h-times").parentElement.hidden = !seen;
  showTimes(data.summary);
  const traced = mine.some((request) => request.trace_id);
  byId("h-trace").hidden = !traced;
  const lossy = mine.some((request) => request.recompute_cause);
  byId("h-lost").hidden = !lossy;
  showSpeed(data.speed);
  const longest = Math.max(...mine.map((request) => request.ended_at - request.arrived_at), 1e-6);
  rows(byId("requests"), mine.map((request) => [
    `${request.slot} ${request.task} ${request.ended_at}`, clock(request.ended_at), outcome(request), phases(request, longest),
    seconds(request.ended_at - request.arrived_at), seconds(request.ttft_s), rate(request.tokens_per_second),
    number(request.prompt_tokens), number(request.prompt_cached), number(request.generated),
    ...(lossy ? [lost(request)] : []),
    ...(traced ? [request.trace_id ? traceButton(request.trace_id) : UNKNOWN] : []),
  ]));
}

function lost(request) {
  if (!request.recompute_cause) return request.prompt_reusable === null ? UNKNOWN : "";
  const cause = request.recompute_cause.replaceAll("_", " ");
  const tokens = request.prompt_recomputed ? `${number(request.prompt_recomputed)}, ${seconds(request.recompute_s)}, ` : "";
  const made = element("span", `${tokens}${cause}`);
  made.title = `${number(request.prompt_reusable)} tokens that had been in the cache, ${number(request.prompt_cached)} reused, ${number(request.prompt_recomputed)} computed again: ${cause}`;
  return [made, "warn"];
}

// A line for each phase and number of busy slots: at its shortest, middle and longest context, or for all of them.
function showSpeed(speed) {
  const phases = [["prefill", speed.prefill], ["prefill < 512", speed.prefill_short], ["decode", speed.decode]];
  const lines = phases.flatMap(([phase, own]) => own.map((line) => [phase, line]));
  byId("speed-section").hidden = !lines.length;
  const known = lines.some(([, line]) => line.points.some((point) => point.ceiling_share !== null));
  byId("h-share").hidden = !known;
  rows(byId("speed"), lines.flatMap(([phase, line]) => {
    const points = line.slope_s ? line.points : line.points.slice(-1);
    return points.map((point, index) => [
      `${phase} ${line.busy_slots} ${index}`, phase, number(line.busy_slots),
      line.slope_s ? number(point.context) : `${number(line.points[0].context)}–${number(point.context)}`,
      rate(point.tokens_per_second), ...(known ? [percent(point.ceiling_share)] : []), number(line.requests), percent(line.spread),
    ]);
  }));
}

function outcome(request) {
  if (request.outcome !== "ok" || !request.truncated) return [request.outcome.replace("_", " "), request.outcome];
  const made = element("span", request.context_shifts ? "ok, shifted" : "ok, cut off");
  made.title = `The slot's context was full${request.context_shifts ? ": the oldest tokens were dropped" : ""}`;
  return [made, "warn"];
}

function phases(request, longest) {
  const noPhases = request.prefill_s === null && request.decode_s === null;
  if (noPhases && request.error) {
    const made = element("span", request.error, "why");
    made.title = request.error;
    return made;
  }
  const parts = noPhases
    ? [["unknown", request.ended_at - request.arrived_at]]
    : [["queue", request.queue_s], ["prefill", request.prefill_s], ["decode", request.decode_s]];
  let at = 0;
  const drawnParts = parts.filter(([, value]) => value).map(([name, value]) => {
    const part = drawn("rect", { class: name, x: (100 * at / longest).toFixed(2), y: 0, width: Math.max(0.3, 100 * value / longest).toFixed(2), height: 10 });
    at += value;
    return part;
  });
  const label = parts.map(([name, value]) => `${name} ${seconds(value)}`).join(", ");
  const picture = drawn("svg", { class: "phases", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": label }, drawnParts);
  picture.append(drawn("title", {}));
  picture.lastChild.textContent = label;
  return picture;
}

function showTimes(summary) {
  put(byId("h-of"), `Last ${number(summary.end_to_end_s.n)} completed requests`);
  rows(byId("times"), [["Queue", summary.queue_s], ["Time to first token", summary.time_to_first_token_s],
    ["Time per output token", summary.time_per_output_token_s], ["End to end", summary.end_to_end_s]]
    .map(([name, one]) => [name, name, seconds(one.p50), seconds(one.p95), seconds(one.p99)]));
}

function traceButton(id) {
  const made = element("button", id.slice(0, 8));
  made.type = "button";
  made.title = `Copy the trace id ${id}`;
  made.addEventListener("click", () => copy(id, made));
  return made;
}

function settings(server) {
  const made = element("span");
  for (const [name, value] of Object.entries(server.settings)) made.append(element("code", `${name}=${value}`), " ");
  return made.childNodes.length ? made : null;
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
    ["Loaded in", server.loading_s && seconds(server.loading_s)], ["Restarts", server.restarts === null ? null : String(server.restarts)],
    ["Memory", own.memory_bytes && bytes(own.memory_bytes)], ["CPU time", own.cpu_s && seconds(own.cpu_s)],
    ["Settings", settings(server)],
  ]);
}

function showGpus(devices) {
  byId("h-gpu").parentElement.hidden = !devices.length;
  rows(byId("gpus"), devices.map((gpu) => [
    gpu.id, gpu.name, percent(gpu.utilization), `${bytes(gpu.memory_used)} of ${bytes(gpu.memory_limit)}`,
    gpu.power_w === null ? UNKNOWN : `${number(gpu.power_w)} W`,
    gpu.temperature_c === null ? UNKNOWN : `${number(gpu.temperature_c)} °C`,
    gpu.throttled_by === null ? UNKNOWN : gpu.throttled_by.join(", ") || "nothing",
  ]));
}

function showAround(data) {
  const list = byId("alarms");
  const recent = data.alarms.filter((alarm) => data.taken_at - alarm.at < 600).reverse();
  const shown = recent.slice(0, SHOWN_ALARMS).map((alarm) => {
    const made = element("li");
    // A flag is not wrapped, so that it can be copied.
    const text = alarm.text.split(/(?<=\s)(--?[a-z][\w-]*)/).map((part, index) => index % 2 ? element("code", part) : part);
    made.append(element("time", clock(alarm.at)), ...text);
    return made;
  });
  if (recent.length > SHOWN_ALARMS) shown.push(element("li", `and ${recent.length - SHOWN_ALARMS} more in the last ten minutes`));
  put(list, ...shown);
  list.hidden = !recent.length;
  byId("connect").hidden = false;
  put(byId("prometheus"), `scrape_configs:\n  - job_name: llamatel\n    static_configs:\n      - targets: ["${location.host}"]\n`);
  put(byId("otlp"), data.about.otlp
    ? `# as it is set now\nOTEL_EXPORTER_OTLP_ENDPOINT=${data.about.otlp}\n`
    : "# currently not set: nothing is sent\nOTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317\n");
  put(byId("about"), `llamatel ${data.about.version || ""}, ${clock(data.taken_at)}`);
  byId("held").hidden = !paused;
  put(byId("held"), `figures of ${clock(data.taken_at)}`);
}

function show(data) {
  const server = data.servers.find((one) => one.key === data.focus);
  byId("empty").hidden = Boolean(server);
  byId("content").hidden = !server;
  showAround(data);
  showServers(data);
  if (!server) {
    document.title = "llamatel";
    return;
  }
  const row = data.overview.get(server.key), router = isRouter(data, server.key);
  put(byId("name"), server.key);
  put(byId("labels"), row.labels);
  showState(server);
  showTiles(data, server, row);
  byId("router").hidden = !router;
  byId("tiles").hidden = router;
  byId("words").hidden = false;
  for (const id of ["h-kv", "h-rate", "h-requests"]) byId(id).parentElement.hidden = router;
  showCache(data, server);
  showSlots(server);
  showRequests(data, server, row);
  showModel(server);
  showGpus(data.devices);
}

// Merges a document of changes into the previous one.
function joined(before, data) {
  const same = !data.whole && before.focus === data.focus;
  data.keys ??= before.keys;
  data.overview = new Map([...(data.whole ? [] : before.overview), ...data.overview.map((row) => [row.key, row])]
    .filter(([key]) => data.keys.includes(key)));
  if (!same) return data;
  for (const [name, values] of Object.entries(before.history)) {
    data.history[name] = [...values, ...data.history[name]].slice(-KEPT_POINTS);
  }
  data.requests = [...before.requests, ...data.requests].slice(-SHOWN_REQUESTS);
  return data;
}

function question() {
  const server = focus ?? known?.focus;
  if (!server) return "live.json";
  const changes = known?.focus ? `&after=${known.cursor}${server === known.focus ? "" : "&refocus"}` : "";
  return `live.json?server=${encodeURIComponent(server)}${changes}`;
}

async function look() {
  clearTimeout(timer);
  if (polling) return;
  if (!document.hidden) {
    const trouble = byId("trouble"), wanted = focus;
    polling = true;
    try {
      const answer = await fetch(question(), { signal: AbortSignal.timeout(PATIENCE_MS) });
      if (!answer.ok) throw new Error(await answer.text());
      known = joined(known, await answer.json());
      // The selected server was removed: keep the one that is shown.
      if (wanted !== null && wanted === focus && known.focus !== wanted) focus = null;
      show(known);
      trouble.hidden = true;
    } catch (error) {
      put(trouble, `No response from llamatel (${error.message.trim()}). The values below are stale; retrying every second.`);
      trouble.hidden = false;
    }
    polling = false;
  }
  const waits = focus !== null && focus !== known?.focus && byId("trouble").hidden;
  if (!paused || waits) timer = setTimeout(look, waits ? 0 : EVERY_MS);
}

async function copy(text, button) {
  const before = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
  catch { button.textContent = "Not allowed here"; }
  setTimeout(() => { button.textContent = before; }, 1200);
}

function choose() {
  if (!location.hash.startsWith(CHOSEN)) return;
  try { focus = decodeURIComponent(location.hash.slice(CHOSEN.length)); } catch { return; }
  look();
}

window.addEventListener("hashchange", choose);
byId("servers").addEventListener("click", (event) => {
  const link = event.target.closest("tr")?.querySelector("a");
  if (link && !event.target.closest("a") && getSelection().isCollapsed) link.click();
});
byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.setAttribute("aria-pressed", String(paused));
  if (known) showAround(known);
  if (!paused) look();
});
for (const button of document.querySelectorAll("[data-order]")) {
  button.addEventListener("click", () => {
    order = button.dataset.order === order ? "state" : button.dataset.order;
    if (known) showServers(known);
  });
}
byId("search").addEventListener("input", (event) => {
  search = event.target.value.trim().toLowerCase();
  if (known) showServers(known);
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(byId(button.dataset.copy).textContent, button));
}
choose();
look();
