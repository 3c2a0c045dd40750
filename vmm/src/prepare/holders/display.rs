//! Uses of displays and sound: framebuffers, monitors, the firmware's display, sound that plays.

use std::collections::BTreeSet;

use vfio_passthrough::PciAddress;

use super::super::tree::Tree;
use super::holder::Holder;
use super::layers::functions_of;

/// All uses of displays and sound.
pub(super) fn holders(tree: &Tree) -> Vec<Holder> {
    let mut holders = boot_displays(tree);
    holders.extend(monitors(tree));
    holders.extend(framebuffers(tree));
    holders.extend(firmware_framebuffers(tree));
    holders.extend(sound(tree));
    holders
}

const LEAVE_DISPLAY: &str =
    "use another device for the host's display: set the primary display in the firmware";

/// The display that the firmware chose (vga_default_device).
fn boot_displays(tree: &Tree) -> Vec<Holder> {
    let boot_display = |name: &String| {
        let value = tree.line(&format!("sys/bus/pci/devices/{name}/boot_vga"))?;
        let devices = BTreeSet::from([name.parse().ok()?]);
        let holder = Holder::new("its boot display (boot_vga)", devices);
        (value == "1").then(|| holder.ends_by(LEAVE_DISPLAY))
    };
    tree.names("sys/bus/pci/devices").iter().filter_map(boot_display).collect()
}

const DRM: &str = "sys/class/drm";

/// Connectors of a DRM device with a monitor that shows something.
fn monitors(tree: &Tree) -> Vec<Holder> {
    let monitor = |name: &String| {
        let is = |file: &str, value: &str| {
            tree.line(&format!("{DRM}/{name}/{file}")).as_deref() == Some(value)
        };
        let what = format!("the monitor at {name}");
        let holder = Holder::new(what, functions_of(tree, DRM, name));
        (is("status", "connected") && is("enabled", "enabled"))
            .then(|| holder.ends_by("connect the monitor to another device"))
    };
    tree.names(DRM).iter().filter_map(monitor).collect()
}

const GRAPHICS: &str = "sys/class/graphics";

fn framebuffers(tree: &Tree) -> Vec<Holder> {
    let is_framebuffer = |name: &&String| {
        let number = name.strip_prefix("fb");
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let console = if is_console(tree) { ", which shows the console" } else { "" };
    let framebuffer = |name: &String| {
        let kind = tree.line(&format!("{GRAPHICS}/{name}/name")).unwrap_or_default();
        let what = format!("the framebuffer {name} ({kind}){console}");
        Holder::new(what, functions_of(tree, GRAPHICS, name)).ends_by(LEAVE_DISPLAY)
    };
    tree.names(GRAPHICS).iter().filter(is_framebuffer).map(framebuffer).collect()
}

const VTCONSOLE: &str = "sys/class/vtconsole";

/// Whether the console of the host is drawn on framebuffers.
fn is_console(tree: &Tree) -> bool {
    let line = |name: &String, file: &str| tree.line(&format!("{VTCONSOLE}/{name}/{file}"));
    tree.names(VTCONSOLE).iter().any(|name| {
        let draws = line(name, "name").is_some_and(|kind| kind.contains("frame buffer"));
        draws && line(name, "bind").as_deref() == Some("1")
    })
}

/// Names of framebuffers that the firmware set up, in /proc/iomem.
const FIRMWARE: [&str; 5] = ["efifb", "vesafb", "simplefb", "simple-framebuffer", "BOOTFB"];

/// Framebuffers of the firmware that lie in a BAR. Their devices are no children of the PCI device
/// in each kernel, so /proc/iomem counts: a resource is indented below the one that contains it.
fn firmware_framebuffers(tree: &Tree) -> Vec<Holder> {
    let text = tree.text("proc/iomem").unwrap_or_default();
    let (mut above, mut holders) = (Vec::<(usize, &str)>::new(), Vec::new());
    for line in text.lines() {
        let Some((_, name)) = line.split_once(" : ") else { continue };
        let depth = line.len().saturating_sub(line.trim_start().len());
        above.retain(|(other, _)| *other < depth);
        if FIRMWARE.contains(&name) {
            let what = format!("the framebuffer of the firmware ({name})");
            let functions = above.iter().filter_map(|(_, name)| name.parse().ok());
            holders.push(Holder::new(what, functions.collect()).ends_by(LEAVE_DISPLAY));
        }
        above.push((depth, name));
    }
    holders
}

const SOUND: &str = "sys/class/sound";

/// Streams that a program has open: the first line of their status is not "closed".
fn sound(tree: &Tree) -> Vec<Holder> {
    let stream = |name: &String| {
        let (card, device) = name.strip_prefix("pcmC")?.split_once('D')?;
        let folder = format!("proc/asound/card{card}/pcm{device}");
        let status = |sub: &String| tree.line(&format!("{folder}/{sub}/status"));
        let mut all = tree.names(&folder).into_iter().filter_map(|sub| status(&sub));
        let what = format!("sound ({name})");
        all.any(|status| status != "closed").then(|| {
            Holder::new(what, functions_of(tree, SOUND, name))
                .ends_by(format!("end what plays or records: fuser -v /dev/snd/{name}"))
        })
    };
    tree.names(SOUND).iter().filter_map(stream).collect()
}

/// The node of an NVIDIA GPU, which has no device in sysfs.
pub(super) fn nvidia_node(tree: &Tree, address: PciAddress) -> Option<String> {
    let text = tree.text(&format!("proc/driver/nvidia/gpus/{address}/information"))?;
    let minor = text.lines().find_map(|line| line.strip_prefix("Device Minor:"))?;
    Some(format!("dev/nvidia{}", minor.trim()))
}
