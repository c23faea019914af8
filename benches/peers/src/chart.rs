//! The blocks as bars, by hand: an SVG needs no library.

use crate::block::Block;
use crate::contenders::Name;
use std::fmt::Write;

const WIDTH: f64 = 900.0;
const LABEL_WIDTH: f64 = 290.0;
const VALUE_WIDTH: f64 = 170.0;
const BAR_HEIGHT: f64 = 15.0;
const LINE_HEIGHT: f64 = 19.0;
const TITLE_HEIGHT: f64 = 34.0;
const FOOT: f64 = 12.0;

/// Transactions in a second of each arm, a panel for each block. Nothing depends on colour alone: atlas is also bold.
pub(crate) fn draw(blocks: &[Block], caption: &str) -> String {
    let height = blocks.iter().map(height_of).sum::<f64>() + TITLE_HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, 10.0, 20.0, "start", "", caption);
    let mut top = TITLE_HEIGHT;
    for block in blocks {
        draw_block(&mut svg, block, top);
        top += height_of(block);
    }
    svg.push_str("</svg>\n");
    svg
}

fn height_of(block: &Block) -> f64 {
    TITLE_HEIGHT + block.arms.len() as f64 * LINE_HEIGHT + FOOT
}

fn draw_block(svg: &mut String, block: &Block, top: f64) {
    let keys = block.keys.as_ref().map_or(String::new(), |keys| format!(", {keys} keys"));
    let fsync = block.fsync.as_ref().map_or(String::new(), |fsync| format!(", fsync {fsync}"));
    let title = format!("{}{keys}{fsync}: {}, per second", block.row, block.about);
    text(svg, 10.0, top + 20.0, "start", "bold", &title);
    let most = block.arms.iter().map(|arm| arm.rate()).fold(f64::MIN_POSITIVE, f64::max);
    for (arm, number) in block.arms.iter().zip(0..) {
        let y = top + TITLE_HEIGHT + f64::from(number) * LINE_HEIGHT;
        let width = arm.rate() / most * (WIDTH - LABEL_WIDTH - VALUE_WIDTH);
        let weight = if arm.name.is_atlas() { "bold" } else { "" };
        let label = format!("{}, {} clients", arm.name.title(), arm.clients);
        text(svg, LABEL_WIDTH - 8.0, y + 12.0, "end", weight, &label);
        let colour = colour_of(arm.name);
        let _ = writeln!(
            svg,
            "<rect x=\"{LABEL_WIDTH}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{colour}\"/>"
        );
        let ratio = block.comparisons.iter().find(|comparison| {
            comparison.theirs == arm.name && comparison.their_clients == arm.clients && !comparison.at_best
        });
        let ratio = ratio.map_or(String::new(), |comparison| format!("  (atlas {:.2} ×)", comparison.median));
        text(svg, LABEL_WIDTH + width + 6.0, y + 12.0, "start", weight, &format!("{:.0}{ratio}", arm.rate()));
    }
}

fn colour_of(name: Name) -> &'static str {
    if name.is_atlas() { "#1f6feb" } else { "#a9b4c0" }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, weight: &str, text: &str) {
    let weight = if weight.is_empty() { "normal" } else { weight };
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_not_break_the_picture() {
        let svg = draw(&[], "a < b & c");
        assert!(svg.contains("a &lt; b &amp; c"), "{svg}");
        assert!(svg.ends_with("</svg>\n"));
    }
}
