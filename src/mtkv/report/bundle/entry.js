// The trace types the report draws (svg.py's DRAWERS); plotly.js's core contains scatter.
const Plotly = require("plotly.js/lib/core");

Plotly.register([
  require("plotly.js/lib/bar"),
  require("plotly.js/lib/heatmap"),
  require("plotly.js/lib/scatterpolar"),
  require("plotly.js/lib/waterfall"),
]);
module.exports = Plotly;
