//! The plots of the page, as SVG text.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::super::Results;
use super::super::results::Clock;
use super::super::stats::sorted;
use super::mib;

/// Size of a plot, in pixels.
const SIZE: (u32, u32) = (860, 380);

/// Room above a plot, in pixels: for what must be said of all figures.
const TOP: u32 = 24;

/// Lines of the grid between those with a number: none.
const FAINT: RGBAColor = RGBAColor(255, 255, 255, 0.0);

/// What the drawing library says when it cannot.
type Trouble = Box<dyn std::error::Error>;
/// A plane to draw on.
type Plane<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A named line of points.
type Series = (&'static str, Vec<(f64, f64)>);

/// What share of the runs had their first line by then.
pub fn distribution(results: &Results, parallel: usize, cold: bool) -> Result<String, Trouble> {
    let series: Vec<Series> = named(results, |n| {
        let values = sorted(&results.values(n, parallel, cold, Clock::First));
        let count = values.len() as f64;
        // A step at each value.
        let step = |(i, x): (usize, f64)| [(x, i as f64 / count), (x, (i + 1) as f64 / count)];
        values.into_iter().enumerate().flat_map(step).collect()
    });
    let Some((low, high)) = range(&series, |(x, _)| x) else { return Ok(String::new()) };
    draw(results, |plane| {
        let mut chart = ChartBuilder::on(plane)
            .margin(12)
            .margin_top(TOP)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d((low * 0.8..high * 1.25).log_scale(), 0.0..1.0)?;
        let label = |share: &f64| format!("{:.0} %", share * 100.0);
        chart
            .configure_mesh()
            .x_desc("ms")
            .x_label_formatter(&short)
            .y_label_formatter(&label)
            .light_line_style(FAINT)
            .draw()?;
        for (n, (name, points)) in series.iter().enumerate() {
            let style = colour(n).stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    })
}

/// Where the time goes: a bar for each, its phases one after the other.
pub fn phases(results: &Results) -> Result<String, Trouble> {
    let bars: Vec<_> = results
        .entrants
        .iter()
        .enumerate()
        .map(|(n, entrant)| (entrant.name, results.phases(n)))
        .filter(|(_, phases)| !phases.is_empty())
        .collect();
    let length = |phases: &[(&str, f64)]| phases.iter().map(|(_, ms)| ms).sum::<f64>();
    let longest = bars.iter().map(|(_, phases)| length(phases)).fold(0.0, f64::max);
    if longest <= 0.0 {
        return Ok(String::new());
    }
    let mut kinds: Vec<&str> = Vec::new();
    for (name, _) in bars.iter().flat_map(|(_, phases)| phases) {
        if !kinds.contains(name) {
            kinds.push(name);
        }
    }
    let rows = bars.len();
    draw(results, |plane| {
        let mut chart = ChartBuilder::on(plane)
            .margin(12)
            .margin_top(TOP)
            .x_label_area_size(40)
            .y_label_area_size(120)
            .build_cartesian_2d(0.0..longest * 1.02, 0.0..rows as f64)?;
        chart
            .configure_mesh()
            .x_desc("ms")
            .x_label_formatter(&short)
            .light_line_style(FAINT)
            .disable_y_mesh()
            .y_labels(0)
            .draw()?;
        for (n, kind) in kinds.iter().enumerate() {
            let mut boxes = Vec::new();
            for (row, (_, phases)) in bars.iter().enumerate() {
                let before = phases.iter().take_while(|(name, _)| name != kind);
                let from: f64 = before.map(|(_, ms)| ms).sum();
                let Some((_, ms)) = phases.iter().find(|(name, _)| name == kind) else { continue };
                let top = (rows - row) as f64;
                boxes.push(Rectangle::new(
                    [(from, top - 0.8), (from + ms, top - 0.2)],
                    colour(n).filled(),
                ));
            }
            chart.draw_series(boxes)?.label(*kind).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour(n).filled())
            });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        for (row, (name, _)) in bars.iter().enumerate() {
            let middle = (rows - row) as f64 - 0.5;
            let (x, y) = chart.backend_coord(&(0.0, middle));
            plane.draw(&Text::new(*name, (x - 118, y - 7), ("sans-serif", 14)))?;
        }
        Ok(())
    })
}

/// The first line against how many are started at once.
pub fn parallelism(results: &Results) -> Result<String, Trouble> {
    let levels = results.levels();
    let series = named(results, |n| {
        let at = |&level: &usize| {
            let p50 = results.percentiles(n, level, false, Clock::First)?.p50;
            Some((level as f64, p50))
        };
        levels.iter().filter_map(at).collect()
    });
    lines(results, &series, ("instances at once", "ms, p50"), true)
}

/// Memory against the number of idle instances.
pub fn memory(results: &Results) -> Result<String, Trouble> {
    let series = named(results, |n| {
        let mine = results.idle.iter().filter(|idle| idle.entrant == n);
        mine.filter_map(|idle| Some((idle.count as f64, mib(idle.pss?)))).collect()
    });
    lines(results, &series, ("idle instances", "MiB, PSS of all"), false)
}

/// A line for each entrant that has points.
fn named(results: &Results, points: impl Fn(usize) -> Vec<(f64, f64)>) -> Vec<Series> {
    let all = results.entrants.iter().enumerate();
    all.map(|(n, entrant)| (entrant.name, points(n))).collect()
}

/// Lines with points on them.
fn lines(
    results: &Results,
    series: &[Series],
    (x_name, y_name): (&str, &str),
    logarithmic: bool,
) -> Result<String, Trouble> {
    let (Some((left, right)), Some((low, high))) =
        (range(series, |(x, _)| x), range(series, |(_, y)| y))
    else {
        return Ok(String::new());
    };
    let right = right.max(left + 1.0);
    draw(results, |plane| {
        let mut builder = ChartBuilder::on(plane);
        builder.margin(12).margin_top(TOP).x_label_area_size(40).y_label_area_size(70);
        macro_rules! on {
            ($y:expr) => {{
                let mut chart = builder.build_cartesian_2d(left..right, $y)?;
                // There is no half an instance.
                let whole = |x: &f64| match (x - x.round()).abs() < 0.01 {
                    true => format!("{x:.0}"),
                    false => String::new(),
                };
                chart
                    .configure_mesh()
                    .x_desc(x_name)
                    .y_desc(y_name)
                    .x_label_formatter(&whole)
                    .y_label_formatter(&short)
                    .light_line_style(FAINT)
                    .draw()?;
                for (n, (name, points)) in series.iter().enumerate() {
                    let style = colour(n).stroke_width(2);
                    chart
                        .draw_series(LineSeries::new(points.iter().copied(), style).point_size(3))?
                        .label(*name)
                        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
                }
                chart
                    .configure_series_labels()
                    .position(SeriesLabelPosition::UpperLeft)
                    .background_style(WHITE.mix(0.8))
                    .border_style(BLACK.mix(0.3))
                    .draw()?;
            }};
        }
        if logarithmic {
            on!((low.max(0.001) * 0.8..high * 1.25).log_scale());
        } else {
            on!(0.0..high * 1.1);
        }
        Ok(())
    })
}

/// The least and the greatest of all points; `None` if there is none, or it is no length.
fn range(series: &[Series], of: impl Fn((f64, f64)) -> f64) -> Option<(f64, f64)> {
    let all = || series.iter().flat_map(|(_, points)| points.iter().map(|point| of(*point)));
    let (low, high) = (all().reduce(f64::min)?, all().reduce(f64::max)?);
    (low.is_finite() && high.is_finite() && high > 0.0).then_some((low, high))
}

/// A number without decimals it has no use for.
fn short(value: &f64) -> String {
    if *value >= 10.0 { format!("{value:.0}") } else { format!("{value}") }
}

fn colour(n: usize) -> RGBAColor {
    Palette99::pick(n).mix(1.0)
}

/// One plot, without the name space that stands alone in HTML. Where KVM is not the hardware's it says so,
/// for a plot is taken out of its page.
fn draw(
    results: &Results,
    on: impl FnOnce(&Plane<'_>) -> Result<(), Trouble>,
) -> Result<String, Trouble> {
    let mut svg = String::new();
    {
        let plane = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        on(&plane)?;
        let kvm = &results.environment.kvm;
        if results.environment.caveat().is_some() {
            let mark = format!("KVM {}: no figures of hardware", kvm.word());
            plane.draw(&Text::new(mark, (12, 5), ("sans-serif", 14).into_font().color(&RED)))?;
        }
        plane.present()?;
    }
    Ok(svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", ""))
}
