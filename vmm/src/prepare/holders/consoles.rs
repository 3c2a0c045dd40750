//! Uses of serial ports as consoles, and of input devices.

use super::super::tree::Tree;
use super::holder::Holder;
use super::layers::{by_number, functions, functions_of};

/// All uses as a console, as a debugger's port, or as a keyboard or mouse.
pub(super) fn holders(tree: &Tree) -> Vec<Holder> {
    let mut holders = consoles(tree);
    holders.extend(debugger(tree));
    holders.extend(inputs(tree));
    holders
}

/// Parses /proc/consoles: `name flags... major:minor`. A console without a device has no number.
fn consoles(tree: &Tree) -> Vec<Holder> {
    let text = tree.text("proc/consoles").unwrap_or_default();
    let console = |line: &str| {
        let name = line.split_whitespace().next()?;
        let folder = by_number(tree, "char", line.split_whitespace().last()?)?;
        let what = format!("the kernel's console ({name})");
        let remedy = format!("boot the host without console={name}");
        Some(Holder::new(what, functions(&folder)).ends_by(remedy))
    };
    text.lines().filter_map(console).collect()
}

/// The port of the kernel's debugger: `[kms,][kbd,]ttyS0[,speed]` (kgdboc).
fn debugger(tree: &Tree) -> Option<Holder> {
    let ports = tree.line("sys/module/kgdboc/parameters/kgdboc")?;
    let port = ports.split(',').find(|part| part.starts_with("tty"))?;
    let devices = functions_of(tree, "sys/class/tty", port);
    let holder = Holder::new(format!("the kernel's debugger (kgdboc on {port})"), devices);
    Some(holder.ends_by("echo '' > /sys/module/kgdboc/parameters/kgdboc"))
}

/// Keyboards and mice. /proc/bus/input/devices has a paragraph for each input device, with lines
/// `N: Name=`, `S: Sysfs=` and `H: Handlers=`. Buttons and jacks have neither handler.
fn inputs(tree: &Tree) -> Vec<Holder> {
    let text = tree.text("proc/bus/input/devices").unwrap_or_default();
    let input = |paragraph: &str| {
        let line = |start: &str| paragraph.lines().find_map(|line| line.strip_prefix(start));
        let mut handlers = line("H: Handlers=")?.split_whitespace();
        let kind = handlers.find_map(|handler| match handler {
            "kbd" => Some("keyboard"),
            _ => handler.starts_with("mouse").then_some("mouse"),
        })?;
        let what = format!("a {kind} ({})", line("N: Name=")?.trim_matches('"'));
        let devices = functions(&tree.path(&format!("sys{}", line("S: Sysfs=")?)));
        let remedy = format!("connect the {kind} to another controller");
        Some(Holder::new(what, devices).ends_by(remedy))
    };
    text.split("\n\n").filter_map(input).collect()
}
