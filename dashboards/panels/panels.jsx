// Draws one exported dashboard with Grafana's own components. window.PANELS has the dashboard and Prometheus's answers.
import 'uplot/dist/uPlot.min.css';
// require(): esbuild gives CommonJS libraries of Grafana's .mjs files a default export that is no component.
const React = require('react');
const { createRoot } = require('react-dom/client');
const {
  applyFieldOverrides, createTheme, dateTime, FieldType, getFieldDisplayValues, Registry, standardTransformers,
  standardTransformersRegistry, toDataFrame, transformDataFrame, getDisplayProcessor, ThemeContext,
} = require('@grafana/data');
const { BarGauge, BigValue, GlobalStyles, PanelChrome, PanelContextProvider, Table, TimeSeries, VizRepeater } = require('@grafana/ui');
const { of, firstValueFrom } = require('rxjs');

const { dashboard, answers, from, to, width } = window.PANELS;
const theme = createTheme({ colors: { mode: 'dark' } });
const COLUMN = width / 24, ROW = 30, GAP = 8;
const text = (value) => value;
const timeRange = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: dateTime(from * 1000), to: dateTime(to * 1000) } };

// What Grafana's options registry does with each property of a field's configuration: nothing but take it.
const property = (path, isCustom) => ({
  id: isCustom ? `custom.${path}` : path, path, isCustom, name: path, settings: {},
  process: (value) => value, shouldApply: () => true, override: () => null, editor: () => null,
});
const CUSTOM = ['lineWidth', 'fillOpacity', 'showPoints', 'stacking', 'thresholdsStyle', 'cellOptions', 'width', 'align', 'drawStyle', 'hideFrom'];
const PLAIN = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'color', 'thresholds', 'mappings', 'links'];
const registry = new Registry(() => [...PLAIN.map((name) => property(name, false)), ...CUSTOM.map((name) => property(name, true))]);
const used = [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer];
standardTransformersRegistry.setInit(() => used.map((transformation) => ({
  id: transformation.id, transformation: async () => transformation, name: transformation.name, editor: () => null,
})));

const legend = (format, labels) => {
  if (format && format !== '__auto') { return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '').trim(); }
  const pairs = Object.entries(labels).filter(([name]) => name !== '__name__').map(([name, value]) => `${name}="${value}"`);
  return pairs.length ? `${labels.__name__ ?? ''}{${pairs.join(', ')}}` : labels.__name__ ?? 'Value';
};
const number = (value) => (value === 'NaN' ? NaN : value === '+Inf' ? Infinity : Number(value));

function seriesFrames(target, rows) {
  return rows.map((row) => {
    const points = row.values ?? [row.value];
    const frame = toDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: points.map((point) => point[0] * 1000), config: {} },
        { name: 'Value', type: FieldType.number, values: points.map((point) => number(point[1])), labels: row.metric,
          config: { displayNameFromDS: legend(target.legendFormat, row.metric) } },
      ],
    });
    return frame;
  });
}

function tableFrame(target, rows, single) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row.metric)))].sort();
  const fields = [{ name: 'Time', type: FieldType.time, values: rows.map((row) => row.value[0] * 1000), config: {} }];
  for (const name of names) {
    fields.push({ name, type: FieldType.string, values: rows.map((row) => row.metric[name] ?? ''), config: { filterable: true } });
  }
  fields.push({ name: single ? 'Value' : `Value #${target.refId}`, type: FieldType.number, values: rows.map((row) => number(row.value[1])), config: {} });
  return toDataFrame({ refId: target.refId, fields });
}

async function framesOf(panel) {
  const frames = panel.targets.flatMap((target) => {
    const rows = answers[panel.id]?.[target.refId] ?? [];
    return target.format === 'table' ? (rows.length ? [tableFrame(target, rows, panel.targets.length === 1)] : []) : seriesFrames(target, rows);
  });
  const steps = panel.transformations ?? [];
  const transformed = steps.length && frames.length ? await firstValueFrom(transformDataFrame(steps, frames)) : frames;
  return applyFieldOverrides({
    data: transformed, fieldConfig: panel.fieldConfig, replaceVariables: text, theme, timeZone: 'utc', fieldConfigRegistry: registry,
  });
}

const Empty = ({ panel }) => (
  <div style={{ height: '100%', display: 'grid', placeItems: 'center', color: theme.colors.text.secondary }}>
    {panel.fieldConfig.defaults.noValue ?? 'No data'}
  </div>
);

function gaps(frames) {
  // As Grafana's panel does: each frame has a numeric field, and what is no finite number is no point.
  const finite = (value) => (Number.isFinite(value) ? value : null);
  const points = (field) => (field.type === FieldType.number ? { ...field, values: field.values.map(finite) } : field);
  return frames.filter((frame) => frame.fields.some((field) => field.type === FieldType.number))
    .map((frame) => ({ ...frame, fields: frame.fields.map(points) }));
}

function Values({ panel, frames, size, draw }) {
  const values = getFieldDisplayValues({
    fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, replaceVariables: text, theme,
    data: frames, timeZone: 'utc',
  });
  return (
    <VizRepeater source={values} getValues={() => values} width={size.width} height={size.height} autoGrid
      orientation={panel.type === 'bargauge' ? 'horizontal' : 'auto'} itemSpacing={3}
      renderValue={({ value, width: w, height: h, count }) => draw(value, w, h, count)} />
  );
}

function Content({ panel, frames, size }) {
  if (panel.type === 'stat') {
    return <Values {...{ panel, frames, size }} draw={(value, w, h, count) => (
      <BigValue value={value.display} width={w} height={h} theme={theme} count={count} colorMode={panel.options.colorMode}
        graphMode="none" justifyMode="auto" textMode="auto" />)} />;
  }
  if (!frames.length) { return <Empty panel={panel} />; }
  if (panel.type === 'timeseries') {
    return (
      <TimeSeries frames={gaps(frames)} structureRev={1} width={size.width} height={size.height} timeRange={timeRange} timeZone="utc"
        legend={panel.options.legend} options={panel.options} replaceVariables={text} renderers={[]}>{() => null}</TimeSeries>
    );
  }
  if (panel.type === 'bargauge') {
    return <Values {...{ panel, frames, size }} draw={(value, w, h) => (
      <BarGauge value={value.display} field={value.field} width={w} height={h} theme={theme} orientation="horizontal"
        displayMode={panel.options.displayMode} display={value.view?.getFieldDisplayProcessor(value.colIndex)} itemSpacing={8}
        lcdCellWidth={8} showUnfilled />)} />;
  }
  if (panel.type === 'table') {
    return <Table data={frames[0]} width={size.width} height={size.height} initialSortBy={panel.options?.sortBy ?? []} enableSharedCrosshair={false} />;
  }
  return <div style={{ color: theme.colors.text.secondary }}>{panel.type}: not among Grafana's components on npm</div>;
}

function Panel({ panel, frames }) {
  const { x, y, w, h } = panel.gridPos;
  const size = { width: w * COLUMN - GAP, height: h * ROW + (h - 1) * GAP };
  const place = { position: 'absolute', left: x * COLUMN, top: y * (ROW + GAP), width: size.width, height: size.height };
  if (panel.type === 'row') {
    return <div style={{ ...place, fontSize: 16, color: theme.colors.text.primary, paddingTop: 6 }}>{`▾ ${panel.title}`}</div>;
  }
  return (
    <div style={place} data-panel={panel.title}>
      <PanelChrome title={panel.title} description={panel.description} width={size.width} height={size.height} padding={panel.type === 'table' ? 'none' : 'md'}>
        {(innerWidth, innerHeight) => <Content panel={panel} frames={frames} size={{ width: innerWidth, height: innerHeight }} />}
      </PanelChrome>
    </div>
  );
}

class Guard extends React.Component {
  state = { error: null };
  static getDerivedStateFromError(error) { return { error }; }
  render() {
    return this.state.error ? <pre style={{ color: 'red' }}>{String(this.state.error.stack ?? this.state.error)}</pre> : this.props.children;
  }
}

async function main() {
  const found = [];
  for (const panel of dashboard.panels) { found.push([panel, panel.type === 'row' ? [] : await framesOf(panel)]); }
  const context = { eventsScope: 'panels', eventBus: { subscribe: () => ({ unsubscribe() {} }), publish() {}, getStream: () => of(), removeAllListeners() {}, newScopedBus() { return this; } } };
  const height = Math.max(...dashboard.panels.map(({ gridPos }) => (gridPos.y + gridPos.h) * (ROW + GAP)));
  document.body.style.background = theme.colors.background.canvas;
  createRoot(document.getElementById('root')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PanelContextProvider value={context}>
        <div style={{ position: 'relative', width, height, margin: 8 }}>
          {found.map(([panel, frames]) => <Guard key={panel.id}><Panel panel={panel} frames={frames} /></Guard>)}
        </div>
      </PanelContextProvider>
    </ThemeContext.Provider>,
  );
}
main().catch((error) => {
  const text = document.createElement('pre');
  text.innerText = String(error.stack);
  document.body.replaceChildren(text);
});
