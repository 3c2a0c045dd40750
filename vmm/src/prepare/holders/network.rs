//! Uses of network interfaces: routes and addresses, bridges, bonds and VLANs, netconsole.

use std::collections::BTreeSet;

use super::super::tree::{Tree, hex};
use super::holder::Holder;
use super::layers::{entries, functions_of};

const NET: &str = "sys/class/net";

/// All uses of network interfaces.
pub(super) fn holders(tree: &Tree) -> Vec<Holder> {
    let (four, six) = routes(tree);
    let defaults = four.lines().filter_map(default_v4).chain(six.lines().filter_map(default_v6));
    let defaults = interfaces(defaults);
    let mut holders: Vec<_> = defaults.iter().map(|name| default_route(tree, name)).collect();
    holders.extend(addresses(tree, &four, &defaults));
    holders.extend(tree.names(NET).iter().filter_map(|name| enslaved(tree, name)));
    holders.extend(netconsoles(tree));
    holders.extend(elsewhere(tree));
    holders
}

fn routes(tree: &Tree) -> (String, String) {
    let text = |name| tree.text(name).unwrap_or_default();
    (text("proc/net/route"), text("proc/net/ipv6_route"))
}

fn default_route(tree: &Tree, name: &str) -> Holder {
    let what = format!("the default route (network interface {name})");
    Holder::new(what, functions_of(tree, NET, name))
        .ends_by(format!("move the default route to another interface than {name}"))
}

/// Names of interfaces, each once.
fn interfaces<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    names.filter(|name| *name != "lo" && !name.contains('/') && !name.starts_with('.')).collect()
}

/// Parses `interface destination gateway flags references use metric mask ...`.
fn default_v4(line: &str) -> Option<&str> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let is_zero = |index: usize| fields.get(index).and_then(|field| hex(field)) == Some(0);
    (is_zero(1) && is_zero(7)).then(|| fields.first().copied()).flatten()
}

/// Parses `destination prefix source prefix next-hop metric references use flags interface`.
fn default_v6(line: &str) -> Option<&str> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let destination = fields.first()?;
    let all = destination.bytes().all(|byte| byte == b'0') && hex(fields.get(1)?) == Some(0);
    all.then(|| fields.get(9).copied()).flatten()
}

/// Further interfaces with an address. An IPv4 address has a route to its network while the
/// interface is up; IPv6 addresses are listed. The address that every interface gives itself is no
/// use.
fn addresses(tree: &Tree, four: &str, defaults: &BTreeSet<&str>) -> Vec<Holder> {
    let six = tree.text("proc/net/if_inet6").unwrap_or_default();
    let names = four.lines().filter_map(any_v4).chain(six.lines().filter_map(global_v6));
    let holder = |name: &&str| {
        let what = format!("the network interface {name}, which is up and has an address");
        let remedy = format!("ip link set {name} down");
        Holder::new(what, functions_of(tree, NET, name)).ends_by(remedy)
    };
    interfaces(names).difference(defaults).map(holder).collect()
}

fn any_v4(line: &str) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let name = fields.next()?;
    hex(fields.next()?).map(|_| name)
}

/// Parses `address index prefix scope flags interface`. Scope 0x20 is link-local (net/ipv6.h).
fn global_v6(line: &str) -> Option<&str> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let scope = hex(fields.get(3)?)?;
    (scope != 0x20).then(|| fields.get(5).copied()).flatten()
}

/// An interface that is part of a bridge, bond, team or VRF, or that carries VLANs or macvlans.
fn enslaved(tree: &Tree, name: &str) -> Option<Holder> {
    let folder = tree.path(&format!("{NET}/{name}"));
    let devices = functions_of(tree, NET, name);
    let master = std::fs::read_link(folder.join("master")).ok();
    if let Some(master) = master.as_deref().and_then(|path| path.file_name()?.to_str()) {
        let what = format!("the network interface {name}, which is part of {master}");
        return Some(Holder::new(what, devices).ends_by(format!("ip link set {name} nomaster")));
    }
    let above = entries(&folder, UPPER);
    let above = above.first()?.file_name()?.to_str()?.strip_prefix(UPPER)?.to_owned();
    let what = format!("the network interface {name}, which is below {above}");
    Some(Holder::new(what, devices).ends_by(format!("ip link delete {above}")))
}

const UPPER: &str = "upper_";

const NETCONSOLE: &str = "sys/kernel/config/netconsole";

/// Interfaces that send the kernel's messages (Documentation/networking/netconsole.rst): targets
/// in configfs, or the option `netconsole=[+][port]@[address]/[interface],...`.
fn netconsoles(tree: &Tree) -> Vec<Holder> {
    let target = |name: &String| {
        let line = |file: &str| tree.line(&format!("{NETCONSOLE}/{name}/{file}"));
        line("dev_name").filter(|_| line("enabled").as_deref() == Some("1"))
    };
    let command_line = tree.line("proc/cmdline").unwrap_or_default();
    let option = |word: &str| {
        let (_, rest) = word.strip_prefix("netconsole=")?.split_once('/')?;
        let name = rest.split(',').next()?;
        Some(if name.is_empty() { "eth0" } else { name }.to_owned())
    };
    let names = tree.names(NETCONSOLE);
    let names = names.iter().filter_map(target).chain(command_line.split(' ').filter_map(option));
    let names: Vec<_> = names.collect();
    let holder = |name: &str| {
        let what = format!("netconsole (network interface {name})");
        Holder::new(what, functions_of(tree, NET, name)).ends_by("modprobe -r netconsole")
    };
    interfaces(names.iter().map(String::as_str)).into_iter().map(holder).collect()
}

/// Interfaces of other network namespaces. The folder `net` of a device shows the interfaces of
/// this namespace only; it exists, and is empty, if all are elsewhere.
fn elsewhere(tree: &Tree) -> Vec<Holder> {
    let hidden = |name: &String| {
        let folder = tree.path(&format!("sys/bus/pci/devices/{name}"));
        let children = entries(&folder, "virtio").into_iter().chain([folder]);
        let mut nets = children.map(|child| child.join("net")).filter(|net| net.is_dir());
        let address = name.parse().ok()?;
        let what = "a network interface in another network namespace (a container)";
        let is_hidden = nets.any(|net| entries(&net, "").is_empty());
        is_hidden.then(|| Holder::new(what, BTreeSet::from([address])))
    };
    tree.names("sys/bus/pci/devices").iter().filter_map(hidden).collect()
}
