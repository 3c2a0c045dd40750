//! Why vfio-pci cannot be loaded, or would refuse a device.

use super::super::inventory::Device;
use super::super::tree::Tree;

/// Why `modprobe vfio-pci` would fail, and the remedy. `None` also if the host does not show it.
pub(super) fn obstacle(tree: &Tree) -> Option<(String, String)> {
    denied_by_kernel(tree).or_else(|| denied_by_modprobe(tree)).or_else(|| missing(tree))
}

/// `module_blacklist=` makes the kernel refuse a module, whoever loads it (kernel/module). A
/// `blacklist` of modprobe concerns automatic loading only.
fn denied_by_kernel(tree: &Tree) -> Option<(String, String)> {
    let command_line = tree.line("proc/cmdline")?;
    let lists = command_line.split(' ').filter_map(|word| word.strip_prefix("module_blacklist="));
    let mut names = lists.flat_map(|list| list.split(','));
    let name = names.find(|name| MODULES.contains(&name.replace('-', "_").as_str()))?;
    let what = format!("the kernel's command line denies a module (module_blacklist={name})");
    Some((what, format!("remove {name} from module_blacklist= and boot again")))
}

/// vfio-pci and the modules that it needs.
const MODULES: [&str; 4] = ["vfio_pci", "vfio_pci_core", "vfio", "vfio_iommu_type1"];

const CONFIGURATION: [&str; 4] =
    ["etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"];

/// `install MODULE COMMAND` runs a command instead of loading the module (modprobe.d(5)).
fn denied_by_modprobe(tree: &Tree) -> Option<(String, String)> {
    let files = CONFIGURATION.iter().flat_map(|folder| {
        tree.names(folder).into_iter().map(move |name| format!("{folder}/{name}"))
    });
    let denial = |file: String| {
        let text = tree.text(&file).filter(|_| file.ends_with(".conf"))?;
        let line = text.lines().find(|line| is_denial(line))?;
        let what = format!("modprobe does not load the driver, by '{}' in /{file}", line.trim());
        Some((what, format!("remove that line from /{file}")))
    };
    files.into_iter().find_map(denial)
}

fn is_denial(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let (verb, module, command) = (words.next(), words.next(), words.next());
    let module = module.unwrap_or_default().replace('-', "_");
    let command = command.unwrap_or_default();
    verb == Some("install")
        && MODULES.contains(&module.as_str())
        && (command.ends_with("/false") || command.ends_with("/true"))
}

/// The kernel has vfio-pci neither as a module nor built in.
fn missing(tree: &Tree) -> Option<(String, String)> {
    let release = tree.line("proc/sys/kernel/osrelease")?;
    let list = |name: &str| tree.text(&format!("lib/modules/{release}/{name}"));
    let (modules, builtin) = (list("modules.dep")?, list("modules.builtin").unwrap_or_default());
    let has_it = [modules, builtin].iter().any(|list| list.contains("/vfio-pci.ko"));
    let what = format!("the kernel {release} has no vfio-pci");
    let remedy = "install the rest of the kernel's modules (linux-modules-extra), or use a kernel \
                  with CONFIG_VFIO_PCI";
    (!has_it).then(|| (what, remedy.to_owned()))
}

const INTEL: u16 = 0x8086;

/// Intel's accelerators that vfio-pci refuses: a guest could harm the host by them
/// (vfio_pci_dev_in_denylist).
const DENYLIST: [u16; 10] =
    [0x0435, 0x0443, 0x0b25, 0x0cfe, 0x19e2, 0x19e3, 0x37c8, 0x37c9, 0x6f54, 0x6f55];

/// Whether vfio-pci refuses a device, unless its denylist is off.
pub(super) fn is_denied(tree: &Tree, device: &Device) -> bool {
    let (vendor, number) = device.id;
    let is_off = tree.line(&format!("sys/module/vfio_pci/parameters/{DISABLE_DENYLIST}"));
    vendor == INTEL && DENYLIST.contains(&number) && is_off.as_deref() != Some("Y")
}

/// The parameter of vfio-pci.
pub(super) const DISABLE_DENYLIST: &str = "disable_denylist";
