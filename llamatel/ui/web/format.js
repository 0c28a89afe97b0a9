// Formatted numbers, as on the terminal (llamatel/ui/view/number_format.py); unknown is a dash.

export const UNKNOWN = "–";
export const isUnknown = (value) => value === null || value === undefined;

function threeDigits(value) {
  for (const [decimals, limit] of [[2, 10], [1, 100]]) {
    const text = value.toFixed(decimals);
    if (Number(text) < limit) return text;
  }
  return Math.round(value).toLocaleString("en");
}

export const number = (value) => isUnknown(value) ? UNKNOWN : Math.round(value).toLocaleString("en");
export const rate = (value) => isUnknown(value) ? UNKNOWN : value === 0 ? "0" : threeDigits(value);
export const percent = (value) => isUnknown(value) ? UNKNOWN : `${(100 * value).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %`;
export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

export function seconds(value) {
  if (isUnknown(value)) return UNKNOWN;
  if (value === 0) return "0 ms";
  if (Math.round(value * 1000) < 1000) return `${threeDigits(value * 1000)} ms`;
  const whole = Math.round(value), two = (part) => String(part).padStart(2, "0");
  if (whole < 100) return `${threeDigits(value)} s`;
  return whole < 3600 ? `${Math.floor(whole / 60)}m${two(whole % 60)}s` : `${Math.floor(whole / 3600)}h${two(Math.floor(whole % 3600 / 60))}m`;
}

// A rounded duration.
export const ago = (span) => span < 100 ? `${Math.round(span)} s ago` : `${Math.round(span / 60)} min ago`;

export function bytes(value) {
  if (isUnknown(value)) return UNKNOWN;
  let unit = 0;
  while (value >= 999.5 && unit < 4) { value /= 1024; unit += 1; }
  return `${unit ? threeDigits(value) : value} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}
