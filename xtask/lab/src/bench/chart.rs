//! The comparison of roads as a picture: a panel for each quantity, a bar for each road.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::{DrawingArea, IntoDrawingArea as _, PathElement, Rectangle, SVGBackend},
    style::{
        Color as _, FontFamily, FontStyle, IntoFont as _, RGBColor, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{
    comparison::Quantity,
    machine::Machine,
    statistics::Summary,
    traffic::{Measured, Road},
};

/// In pixels.
const SIZE: (u32, u32) = (880, 330);
const MARGIN: i32 = 20;
const PANEL_WIDTH: i32 = 214;
/// Where a panel's bars begin and end, from the top of the picture.
const BARS: (i32, i32) = (128, 252);
const BAR_WIDTH: i32 = 44;
const BAR_DISTANCE: i32 = 64;

/// A colour on a light background, and its counterpart on a dark one.
#[derive(Clone, Copy)]
struct Shade {
    light: RGBColor,
    dark: &'static str,
}

const PAPER: Shade = Shade { light: RGBColor(255, 255, 255), dark: "#0D1117" };
const INK: Shade = Shade { light: RGBColor(31, 35, 40), dark: "#E6EDF3" };
const FAINT: Shade = Shade { light: RGBColor(89, 99, 110), dark: "#9DA7B3" };
const REMEDY: Shade = Shade { light: RGBColor(140, 149, 159), dark: "#6E7681" };
const STEER: Shade = Shade { light: RGBColor(84, 142, 224), dark: "#4184E4" };
const DIRECT: Shade = Shade { light: RGBColor(26, 127, 55), dark: "#3FB950" };
const SHADES: [Shade; 6] = [PAPER, INK, FAINT, REMEDY, STEER, DIRECT];

impl Shade {
    const fn of(road: Road) -> Self {
        match road {
            Road::Remedy => REMEDY,
            Road::Steer => STEER,
            Road::Direct => DIRECT,
        }
    }

    /// As plotters writes it.
    fn hex(self) -> String {
        let RGBColor(red, green, blue) = self.light;
        format!("#{red:02X}{green:02X}{blue:02X}")
    }
}

/// A group of bars.
struct Panel {
    quantity: Quantity,
    bars: [(Road, Summary); Road::ALL.len()],
    /// Median of `direct` to `steer`, round by round.
    ratio: f64,
}

/// Draws what was measured into a file.
pub(super) fn write(path: &Path, measured: &Measured, machine: &Machine, note: &str) -> Result<()> {
    let panels: Vec<_> = measured
        .direct_against_steer()
        .into_iter()
        .map(|comparison| Panel {
            quantity: comparison.quantity,
            bars: Road::ALL.map(|road| (road, measured.summary(comparison.quantity, road))),
            ratio: comparison.ratio.median,
        })
        .collect();
    let svg = draw(&panels, &[&machine.line(), note])?;
    fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}

fn draw(panels: &[Panel], notes: &[&str]) -> Result<String> {
    let mut svg = String::new();
    {
        let picture = Picture(SVGBackend::with_string(&mut svg, SIZE).into_drawing_area());
        picture.0.fill(&PAPER.light).map_err(failed)?;
        picture.text(
            "From Windows to a container: by the nft remedy, steered, direct",
            TITLE,
            (MARGIN, 28),
        )?;
        for (index, panel) in (0..).zip(panels) {
            picture.panel(panel, MARGIN + index * PANEL_WIDTH)?;
        }
        for (line, note) in (0..).zip(notes) {
            picture.text(note, NOTE, (MARGIN, 300 + line * 16))?;
        }
        picture.0.present().map_err(failed)?;
    }
    Ok(for_both_backgrounds(&svg))
}

/// How a text looks, and on which side of its place it stands.
#[derive(Clone, Copy)]
struct Text {
    pixels: f64,
    style: FontStyle,
    shade: Shade,
    side: HPos,
}

const TITLE: Text = Text { pixels: 17.0, style: FontStyle::Bold, shade: INK, side: HPos::Left };
const HEADING: Text = Text { pixels: 14.0, ..TITLE };
const NOTE: Text = Text { pixels: 12.0, style: FontStyle::Normal, shade: FAINT, side: HPos::Left };
const NAME: Text = Text { shade: INK, side: HPos::Center, ..NOTE };
const VALUE: Text = Text { pixels: 13.0, style: FontStyle::Bold, ..NAME };

struct Picture<'a>(DrawingArea<SVGBackend<'a>, Shift>);

impl Picture<'_> {
    fn panel(&self, panel: &Panel, left: i32) -> Result<()> {
        let Panel { quantity, bars, ratio } = panel;
        self.text(quantity.name(), HEADING, (left, 62))?;
        let better = match quantity {
            Quantity::Rate(_) => "more",
            Quantity::Cpu | Quantity::ConnectTime => "less",
        };
        self.text(&format!("{}, {better} is better", quantity.unit()), NOTE, (left, 80))?;
        let highest = bars.iter().map(|(_, summary)| top(*summary)).fold(0.0, f64::max);
        let height = |value: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "within the picture")]
            let pixels = (value / highest * f64::from(BARS.1 - BARS.0)).round() as i32;
            BARS.1 - pixels
        };
        for (index, (road, summary)) in (0..).zip(bars) {
            let left = left + 10 + index * BAR_DISTANCE;
            let middle = left + BAR_WIDTH / 2;
            let corners = [(left, height(summary.median)), (left + BAR_WIDTH, BARS.1)];
            self.0.draw(&Rectangle::new(corners, Shade::of(*road).light.filled())).map_err(failed)?;
            if let Some((low, high)) = summary.interval {
                let whisker = vec![(middle, height(low)), (middle, height(high))];
                self.0.draw(&PathElement::new(whisker, INK.light.stroke_width(2))).map_err(failed)?;
            }
            self.text(&quantity.number(summary.median), VALUE, (middle, height(top(*summary)) - 6))?;
            self.text(road.name(), NAME, (middle, BARS.1 + 16))?;
        }
        self.text(&format!("direct : steer = {ratio:.2}"), NOTE, (left, 98))
    }

    /// Writes on a line at this height.
    fn text(&self, text: &str, look: Text, at: (i32, i32)) -> Result<()> {
        // plotters divides by this for fonts that it measures itself.
        let font = (FontFamily::SansSerif, look.pixels * 1.24, look.style).into_font();
        let style = TextStyle::from(font).color(&look.shade.light).pos(Pos::new(look.side, VPos::Bottom));
        self.0.draw_text(text, &style, at).map_err(failed)
    }
}

/// How high a bar reaches, its interval included.
fn top(summary: Summary) -> f64 {
    summary.interval.map_or(summary.median, |(_, high)| high.max(summary.median))
}

/// plotters' error borrows from what it drew on.
fn failed(error: impl std::error::Error) -> anyhow::Error {
    anyhow!("drawing the chart: {error}")
}

/// Tells the browser what each colour becomes on a dark background. plotters writes colours as attributes, which any rule
/// of a style sheet overrides.
fn for_both_backgrounds(svg: &str) -> String {
    let mut style = String::from("<style>@media (prefers-color-scheme: dark) {\n");
    for shade in SHADES {
        let Shade { dark, .. } = shade;
        for attribute in ["fill", "stroke"] {
            // Writing to a String does not fail.
            let _ = writeln!(style, "[{attribute}=\"{}\"] {{ {attribute}: {dark}; }}", shade.hex());
        }
    }
    style.push_str("}</style>\n");
    svg.replacen(">\n", &format!(">\n{style}"), 1)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{load::Load, traffic::QUANTITIES},
        *,
    };

    fn picture() -> String {
        let summary = |median: f64| Summary {
            median,
            interval: Some((median * 0.9, median * 1.1)),
            min: median,
            max: median,
        };
        let panel = |quantity| Panel {
            quantity,
            bars: Road::ALL.map(|road| (road, summary(1e-9 * f64::from(road as u8 + 1)))),
            ratio: 1.5,
        };
        let panels = QUANTITIES.map(panel);
        draw(&panels, &["A CPU <fast> & quiet, 2026-11-28"]).unwrap_or_else(|error| panic!("{error:#}"))
    }

    #[test]
    fn the_chart_names_machine_roads_and_quantities() {
        let svg = picture();
        assert!(svg.contains("A CPU &lt;fast&gt; &amp; quiet, 2026-11-28"), "{svg}");
        for road in Road::ALL {
            assert_eq!(svg.matches(&format!("\n{}\n", road.name())).count(), 4, "{svg}");
        }
        assert!(svg.contains(Load::KeepAlive.name()) && svg.contains("direct : steer = 1.50"), "{svg}");
    }

    #[test]
    fn the_chart_has_every_colour_for_a_dark_background() {
        let svg = picture();
        let (style, drawn) = svg.split_once("</style>").unwrap_or_else(|| panic!("{svg}"));
        let colours = drawn.split("=\"#").skip(1).map(|rest| &rest[..6]);
        for colour in colours {
            assert!(style.contains(&format!("=\"#{colour}\"]")), "#{colour} stays as it is: {svg}");
        }
    }

    #[test]
    fn the_fastest_bar_is_the_highest() {
        let svg = picture();
        let heights: Vec<u32> = svg
            .split("<rect ")
            .skip(1)
            .filter(|rect| SHADES[3..].iter().any(|shade| rect.contains(&shade.hex())))
            .filter_map(|rect| rect.split_once("height=\"")?.1.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(heights.len(), 12, "{svg}");
        assert!(heights.chunks(3).all(|three| three.is_sorted_by(|a, b| a < b)), "{heights:?}");
    }
}
