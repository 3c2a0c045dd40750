//! Plots as SVG: points with a line, and bars.

use lab::Error;
use plotters::prelude::*;

const SIZE: (u32, u32) = (600, 360);
/// The font of labels.
const FONT: (&str, u32) = ("sans-serif", 13);

/// A straight line, by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// The value at x = 0.
    pub offset: f64,
    /// The growth for each unit of x.
    pub slope: f64,
    /// The coefficient of determination, 0 to 1.
    pub fit: f64,
}

/// Fits a line to points; the line is flat if all points have the same x.
pub fn line(points: &[(f64, f64)]) -> Line {
    let count = points.len().max(1) as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| {
        points.iter().map(|(px, py)| of(px - x, py - y)).sum::<f64>()
    };
    let (xx, xy, yy) = (sum(&|dx, _| dx * dx), sum(&|dx, dy| dx * dy), sum(&|_, dy| dy * dy));
    let slope = if xx > 0.0 { xy / xx } else { 0.0 };
    let fit = if xx > 0.0 && yy > 0.0 { xy * xy / (xx * yy) } else { 1.0 };
    Line { offset: y - slope * x, slope, fit }
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Plots the points with their line. Both axes begin at 0.
pub fn svg(title: &str, x_name: &str, points: &[(f64, f64)]) -> Result<String, Error> {
    let mut out = String::new();
    drawn(title, draw_points(&mut out, title, x_name, points)).map(|()| out)
}

/// Plots bars with their names, from top to bottom.
pub fn bars(title: &str, bars: &[(String, f64)]) -> Result<String, Error> {
    let mut out = String::new();
    drawn(title, draw_bars(&mut out, title, bars)).map(|()| out)
}

fn drawn(title: &str, result: Drawn) -> Result<(), Error> {
    result.map_err(|error| Error::Command {
        command: format!("plot of {title}"),
        why: error.to_string(),
    })
}

/// The end of an axis: somewhat above the largest value.
fn end(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(1e-9, f64::max) * 1.05
}

fn draw_points(out: &mut String, title: &str, x_name: &str, points: &[(f64, f64)]) -> Drawn {
    let line = line(points);
    let most_x = end(points.iter().map(|point| point.0));
    let most_y = end(points.iter().map(|point| point.1));
    let root = SVGBackend::with_string(out, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, FONT)
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..most_x, 0.0..most_y)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).label_style(FONT).x_desc(x_name).draw()?;
    let ends = [0.0, most_x].map(|x| (x, line.offset + line.slope * x));
    chart.draw_series(LineSeries::new(ends, &BLUE))?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, RED.filled())))?;
    root.present()?;
    Ok(())
}

fn draw_bars(out: &mut String, title: &str, bars: &[(String, f64)]) -> Drawn {
    let rows = bars.len() as f64;
    let most = end(bars.iter().map(|bar| bar.1));
    let root = SVGBackend::with_string(out, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, FONT)
        .margin(10)
        .x_label_area_size(30)
        .build_cartesian_2d(0.0..most, rows..0.0)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).label_style(FONT).disable_y_mesh().draw()?;
    let row = |index: usize| index as f64;
    chart.draw_series(bars.iter().enumerate().map(|(index, (_, value))| {
        let corners = [(0.0, row(index) + 0.1), (*value, row(index) + 0.9)];
        Rectangle::new(corners, BLUE.mix(0.3).filled())
    }))?;
    chart.draw_series(bars.iter().enumerate().map(|(index, (name, value))| {
        let text = format!(" {name}: {}", number(*value));
        Text::new(text, (0.0, row(index) + 0.3), FONT)
    }))?;
    root.present()?;
    Ok(())
}

/// Formats a number with about three significant digits.
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
    fn fits_a_line_to_the_points() {
        let exact = line(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]);
        assert!((exact.slope - 2.0).abs() < 1e-9 && (exact.offset - 3.0).abs() < 1e-9);
        assert!((exact.fit - 1.0).abs() < 1e-9);
        let bent = line(&[(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]);
        assert!(bent.slope.abs() < 1e-9 && bent.fit < 0.01);
        assert!(line(&[]).slope.abs() < 1e-9);
    }

    #[test]
    fn draws_every_point_and_every_bar_inside() {
        let points = svg("exits", "devices", &[(1.0, 100.0), (16.0, 1600.0)]).unwrap();
        assert_eq!(points.matches("<circle").count(), 2);
        assert!(points.contains("devices"));
        let bars = bars("exits", &[("QEMU".into(), 2.0), ("vmm".into(), 0.0)]).unwrap();
        assert!(bars.contains("QEMU: 2.00") && bars.contains("vmm: 0.00"));
        for svg in [points, bars] {
            assert!(svg.contains("exits") && !svg.contains("NaN"), "{svg}");
            let outside = [" x=\"-", " y=\"-", "cx=\"-", "cy=\"-"];
            assert!(outside.iter().all(|place| !svg.contains(place)), "{svg}");
        }
    }
}
