//! Charts as SVG, written by hand: readable on light and on dark backgrounds, and the same bytes for the same figures.

use std::fmt::Write as _;

use crate::builder::Tool;
use crate::goals::Goal;
use crate::page::show;
use crate::results::Row;

/// One line of a chart.
pub(crate) struct Line {
    pub(crate) name: String,
    /// Size and value, by size.
    pub(crate) points: Vec<(u64, f64)>,
}

const WIDTH: f64 = 900.0;
/// Middle greys and colours have contrast enough on white and on black.
const TEXT: &str = "#808080";
const GRID: &str = "#80808050";
const FONT: &str = "font-family=\"system-ui, sans-serif\" font-size=\"12\"";

fn colour(name: &str) -> &'static str {
    match Tool::ALL.into_iter().find(|tool| tool.to_string() == name) {
        Some(Tool::BuildEngine) => "#d9480f",
        Some(Tool::Buildx) => "#1c7ed6",
        Some(Tool::Buildah) => "#2b9348",
        Some(Tool::Podman) => "#9c36b5",
        None => TEXT,
    }
}

/// A logarithmic scale over whole decades, from `from` pixels on.
struct Scale {
    first: f64,
    decades: f64,
    from: f64,
    length: f64,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64> + Clone, from: f64, length: f64) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min).max(1e-6);
        let most = values.fold(0.0, f64::max).max(least);
        let first = least.log10().floor();
        Self { first, decades: (most.log10().ceil() - first).max(1.0), from, length }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value.max(1e-6).log10() - self.first) / self.decades * self.length
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let first = self.first;
        (0..=self.decades as i32).map(move |decade| 10f64.powf(first + f64::from(decade)))
    }
}

fn begin(height: f64, title: &str) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" {FONT} fill=\"{TEXT}\">\n<title>{title}</title>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn legend(svg: &mut String, names: &[&str], y: f64) {
    let mut x = 10.0;
    for name in names {
        let _ =
            writeln!(svg, "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{}\"/>", y - 10.0, colour(name));
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\">{}</text>", x + 17.0, escape(name));
        x += 40.0 + 7.0 * name.len() as f64;
    }
}

/// Wall times of rows, a bar for each builder, and a mark where the goal is.
pub(crate) fn bars(rows: &[&Row]) -> String {
    const LEFT: f64 = 80.0;
    const BAR: f64 = 13.0;
    const GAP: f64 = 12.0;
    const TOP: f64 = 56.0;
    let walls = || rows.iter().flat_map(|row| row.cells.iter().filter_map(|cell| Some(cell.wall()?.as_secs_f64())));
    // The goals are on the scale as well.
    let goals = rows.iter().filter_map(|row| Some(Goal::of(row)?.wall?.as_secs_f64()));
    let values: Vec<f64> = walls().chain(goals).collect();
    let scale = Scale::over(values.iter().copied(), LEFT, WIDTH - LEFT - 90.0);
    let bars: usize = rows.iter().map(|row| row.cells.len()).sum();
    let height = TOP + BAR * bars as f64 + GAP * rows.len() as f64 + 20.0;
    let mut svg = begin(height, "Wall time by workload and builder, logarithmic scale");
    let mut names: Vec<&str> = Vec::new();
    for cell in rows.iter().flat_map(|row| &row.cells) {
        if !names.contains(&cell.name.as_str()) {
            names.push(&cell.name);
        }
    }
    legend(&mut svg, &names, 16.0);
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"16\" text-anchor=\"end\">│ goal · wall time, logarithmic</text>",
        WIDTH - 10.0
    );
    for tick in scale.ticks() {
        let x = scale.at(tick);
        let _ = writeln!(svg, "<path d=\"M{x:.1} {} V{}\" stroke=\"{GRID}\"/>", TOP - 10.0, height - 16.0);
        let label = show(std::time::Duration::from_secs_f64(tick)).replace(".00", "").replace(".0 ", " ");
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", TOP - 16.0);
    }
    let mut y = TOP;
    for row in rows {
        let top = y;
        let middle = y + BAR * row.cells.len() as f64 / 2.0 + 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            escape(&row.id)
        );
        for cell in &row.cells {
            let text_y = y + BAR - 3.0;
            match cell.wall() {
                Some(wall) => {
                    let end = scale.at(wall.as_secs_f64());
                    let (width, colour) = ((end - LEFT).max(1.0), colour(&cell.name));
                    let thickness = BAR - 2.0;
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{thickness}\" fill=\"{colour}\"/>"
                    );
                    let _ = writeln!(
                        svg,
                        "<text x=\"{:.1}\" y=\"{text_y:.1}\" font-size=\"11\">{}</text>",
                        end + 5.0,
                        show(wall)
                    );
                }
                None => {
                    let note = escape(cell.note.as_deref().unwrap_or("–"));
                    let _ =
                        writeln!(svg, "<text x=\"{}\" y=\"{text_y:.1}\" font-size=\"11\">{note}</text>", LEFT + 5.0);
                }
            }
            y += BAR;
        }
        if let Some(goal) = Goal::of(row).and_then(|goal| goal.wall) {
            let x = scale.at(goal.as_secs_f64());
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {:.1} V{:.1}\" stroke=\"{TEXT}\" stroke-width=\"2\"/>",
                top - 3.0,
                y + 1.0
            );
        }
        y += GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

/// How something grows, both scales logarithmic: what grows with the work runs as steep as the dashed line.
pub(crate) fn lines(title: &str, lines: &[Line]) -> String {
    const HEIGHT: f64 = 330.0;
    const LEFT: f64 = 70.0;
    const BOTTOM: f64 = 290.0;
    let mut sizes: Vec<u64> = lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let values: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().map(|point| point.1)).collect();
    let across = Scale::over(sizes.iter().map(|size| *size as f64), LEFT, WIDTH - LEFT - 170.0);
    let up = Scale::over(values.iter().copied(), BOTTOM, -(BOTTOM - 60.0));
    let mut svg = begin(HEIGHT, title);
    let _ = writeln!(svg, "<text x=\"10\" y=\"16\" font-size=\"14\">{}</text>", escape(title));
    legend(&mut svg, &lines.iter().map(|line| line.name.as_str()).collect::<Vec<_>>(), 40.0);
    for tick in up.ticks() {
        let y = up.at(tick);
        let _ = writeln!(svg, "<path d=\"M{LEFT} {y:.1} H{}\" stroke=\"{GRID}\"/>", WIDTH - 150.0);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>", LEFT - 8.0, y + 4.0);
    }
    for size in &sizes {
        let x = across.at(*size as f64);
        let _ = writeln!(svg, "<path d=\"M{x:.1} 60 V{BOTTOM}\" stroke=\"{GRID}\"/>");
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{size}</text>", BOTTOM + 18.0);
    }
    // As much more time as work, from the first point of the first line.
    if let (Some(&(size, value)), Some(&last)) = (lines.first().and_then(|line| line.points.first()), sizes.last()) {
        let end = value * last as f64 / size as f64;
        let highest = 10f64.powf(up.first + up.decades);
        let (end, last) = if end > highest { (highest, size as f64 * highest / value) } else { (end, last as f64) };
        let _ = writeln!(
            svg,
            "<path d=\"M{:.1} {:.1} L{:.1} {:.1}\" stroke=\"{TEXT}\" stroke-dasharray=\"3 5\"/>",
            across.at(size as f64),
            up.at(value),
            across.at(last),
            up.at(end)
        );
    }
    for line in lines {
        let colour = colour(&line.name);
        let path: Vec<String> = line
            .points
            .iter()
            .map(|(size, value)| format!("{:.1} {:.1}", across.at(*size as f64), up.at(*value)))
            .collect();
        let _ =
            writeln!(svg, "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" L"));
        for (point, (_, value)) in path.iter().zip(&line.points) {
            let (x, y) = point.split_once(' ').expect("written with a space");
            let _ = writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3.5\" fill=\"{colour}\"/>");
            let label = if *value < 10.0 { format!("{value:.3}") } else { format!("{value:.0}") };
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" dx=\"7\" dy=\"-5\" font-size=\"11\">{label}</text>");
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decade_is_as_long_as_the_next() {
        let scale = Scale::over([0.02, 9.0].into_iter(), 100.0, 300.0);
        assert_eq!(scale.ticks().map(|tick| scale.at(tick).round()).collect::<Vec<_>>(), [100.0, 200.0, 300.0, 400.0]);
    }

    #[test]
    fn titles_cannot_break_out_of_the_chart() {
        let line = Line { name: "a<b".to_owned(), points: vec![(1, 1.0), (10, 2.0)] };
        let svg = lines("x & <y>", &[line]);
        assert!(svg.contains("x &amp; &lt;y&gt;") && svg.contains("a&lt;b") && !svg.contains("<y>"), "{svg}");
    }
}
