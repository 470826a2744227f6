/**
 * Style of the widget. Colours derive from the text around it, so it fits light and dark pages without a setting.
 *
 * Pages can set `--loopwright-accent` and `--loopwright-on-accent` (the send button). `gray` has a contrast of more than 3
 * on white and on black. Written without spaces, because nothing compresses it.
 */
export const STYLE =
  ':host{display:block;font-size:14px;line-height:1.4}' +
  ':host([hidden]),[hidden]{display:none!important}' +
  'div{display:flex;flex-wrap:wrap;align-items:center;gap:4px}' +
  'div:first-child{margin:0 -8px}' +
  'button,textarea{font:inherit;color:inherit;background:0 0;border:0;border-radius:8px}' +
  'button{min-height:34px;min-width:34px;padding:0 8px;cursor:pointer}' +
  'button:hover,[aria-expanded=true]{background:#8883}' +
  'svg{width:18px;height:18px;vertical-align:middle;fill:none;stroke:currentColor;stroke-width:1.7;stroke-linejoin:round;stroke-linecap:round}' +
  '#down svg{transform:scaleY(-1)}' +
  '[aria-pressed=true] svg{fill:#888c}' +
  ':focus-visible{outline:2px solid;outline-offset:1px}' +
  '#retry{text-decoration:underline}' +
  'form{display:grid;gap:8px;max-width:560px;margin-top:6px;padding:12px;border-radius:12px;border:1px solid #8886}' +
  'label,form button,.error{font-weight:600}' +
  'textarea{border:1px solid gray;padding:8px 10px;resize:vertical}' +
  'form div{justify-content:end}' +
  'form button{padding:0 14px}' +
  '#send{background:var(--loopwright-accent,#1561c4);color:var(--loopwright-on-accent,#fff)}' +
  '@media(pointer:coarse){button{min-height:44px;min-width:44px}}' +
  '@media(prefers-reduced-motion:no-preference){button{transition:background .15s}form{animation:o .15s}@keyframes o{from{opacity:0;translate:0 -4px}}}' +
  '@media(forced-colors:active){button{border:1px solid}[aria-pressed=true]{border-width:3px}}'
