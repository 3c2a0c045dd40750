//! Points and the line through them, as an SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
/// Room for the numbers at the axes and for the title.
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 45.0;
const TOP: f64 = 30.0;
const RIGHT: f64 = 20.0;

/// A straight line, by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Where x is 0.
    pub offset: f64,
    /// For each x.
    pub slope: f64,
    /// How much of the points' variance the line explains, up to 1.
    pub fit: f64,
}

/// The line through points; a flat one where they have one x.
pub fn line(points: &[(f64, f64)]) -> Line {
    let count = points.len().max(1) as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| points.iter().map(|(px, py)| of(px - x, py - y)).sum::<f64>();
    let (xx, xy, yy) = (
        sum(&|dx, _| dx * dx),
        sum(&|dx, dy| dx * dy),
        sum(&|_, dy| dy * dy),
    );
    let slope = if xx > 0.0 { xy / xx } else { 0.0 };
    let fit = if xx > 0.0 && yy > 0.0 {
        xy * xy / (xx * yy)
    } else {
        1.0
    };
    Line {
        offset: y - slope * x,
        slope,
        fit,
    }
}

/// The points with their line, from 0 on both axes.
pub fn svg(title: &str, x_name: &str, points: &[(f64, f64)]) -> String {
    let line = line(points);
    let most = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(1e-9, f64::max) * 1.05;
    let (most_x, most_y) = (most(|point| point.0), most(|point| point.1));
    let x = |value: f64| LEFT + value / most_x * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / most_y * (HEIGHT - BOTTOM - TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut put = |element: String| {
        // Writing into a string does not fail.
        let _ = writeln!(out, "{element}");
    };
    put(text(WIDTH / 2.0, 18.0, "middle", title));
    put(text(WIDTH / 2.0, HEIGHT - 8.0, "middle", x_name));
    for step in 0..=4 {
        let (vx, vy) = (most_x * f64::from(step) / 4.0, most_y * f64::from(step) / 4.0);
        put(stroke((x(0.0), y(vy)), (x(most_x), y(vy)), "#ddd"));
        put(text(LEFT - 6.0, y(vy) + 4.0, "end", &number(vy)));
        put(text(x(vx), HEIGHT - BOTTOM + 16.0, "middle", &number(vx)));
    }
    put(stroke(
        (x(0.0), y(line.offset.max(0.0))),
        (x(most_x), y(line.offset + line.slope * most_x)),
        "#36c",
    ));
    for (px, py) in points {
        put(format!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"#c33\"/>",
            x(*px),
            y(*py)
        ));
    }
    out.push_str("</svg>\n");
    out
}

fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>")
}

fn stroke(from: (f64, f64), to: (f64, f64), colour: &str) -> String {
    let (x1, y1, x2, y2) = (from.0, from.1, to.0, to.1);
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>")
}

/// Short: three digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_that_of_the_points() {
        let exact = line(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]);
        assert!((exact.slope - 2.0).abs() < 1e-9 && (exact.offset - 3.0).abs() < 1e-9);
        assert!((exact.fit - 1.0).abs() < 1e-9);
        let bent = line(&[(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]);
        assert!(bent.slope.abs() < 1e-9 && bent.fit < 0.01);
        assert!(line(&[]).slope.abs() < 1e-9);
    }

    #[test]
    fn every_point_is_drawn_inside() {
        let points = [(1.0, 100.0), (16.0, 1600.0)];
        let svg = svg("exits", "devices", &points);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("=\"-"), "{svg}");
        assert!(svg.ends_with("</svg>\n"));
    }
}
