//! Uses of network interfaces.

use super::members::{NIC, below, host, in_use, not_in_use};

#[test]
fn an_interface_with_an_address_is_a_use() {
    let route =
        "Iface\tDestination\tGateway\neth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\n";
    let what = "the network interface eth0, which is up and has an address";
    let remedy = "ip link set eth0 down";
    in_use(&host().file("proc/net/route", route), NIC, what, remedy);
    let six = |scope: &str| {
        let line = format!("20010db8000000000000000000000001 02 40 {scope} 80     eth0\n");
        host().file("proc/net/if_inet6", line)
    };
    in_use(&six("00"), NIC, what, remedy);
    not_in_use(&six("20"));
}

#[test]
fn a_bridge_bond_or_vlan_uses_the_interface_at_any_depth() {
    let eth0 = below(NIC, "net/eth0");
    let upper = |name: &str| format!("sys/devices/virtual/net/{name}");
    let fixture = host()
        .link("sys/class/net/bond0", &upper("bond0"))
        .link(&format!("{eth0}/master"), &upper("bond0"))
        .link(&format!("{}/lower_eth0", upper("bond0")), &eth0);
    let what = "the network interface eth0, which is part of bond0";
    in_use(&fixture, NIC, what, "ip link set eth0 nomaster");

    let fixture = host().link(&format!("{eth0}/upper_eth0.10"), &upper("eth0.10"));
    let what = "the network interface eth0, which is below eth0.10";
    in_use(&fixture, NIC, what, "ip link delete eth0.10");

    let fixture = host()
        .link("sys/class/net/vlan7", &upper("vlan7"))
        .link(&format!("{}/lower_bond0", upper("vlan7")), &upper("bond0"))
        .link(&format!("{}/lower_eth0", upper("bond0")), &eth0)
        .file("proc/net/route", "Iface\nvlan7\t0002A8C0\t00000000\n");
    let what = "the network interface vlan7, which is up and has an address";
    in_use(&fixture, NIC, what, "ip link set vlan7 down");
}

#[test]
fn netconsole_uses_its_interface() {
    let what = "netconsole (network interface eth0)";
    let remedy = "modprobe -r netconsole";
    let cases = ["netconsole=@/,@10.0.0.2/", "quiet netconsole=+4444@10.0.0.1/eth0,9@10.0.0.2/"];
    for options in cases {
        in_use(&host().file("proc/cmdline", options), NIC, what, remedy);
    }
    let target = |enabled: &str| {
        host()
            .file("sys/kernel/config/netconsole/t/dev_name", "eth0\n")
            .file("sys/kernel/config/netconsole/t/enabled", enabled)
    };
    in_use(&target("1\n"), NIC, what, remedy);
    not_in_use(&target("0\n"));
}

#[test]
fn an_interface_of_another_namespace_is_a_use() {
    let what = "a network interface in another network namespace (a container)";
    for folder in ["net", "virtio0/net"] {
        let second = "0000:00:03.1";
        let fixture = host().device(second, "0x020000", Some(9), Some("igb"));
        let net = fixture.path(&below(second, folder));
        not_in_use(&fixture);
        std::fs::create_dir_all(&net).unwrap();
        in_use(&fixture, second, what, "");
        std::fs::create_dir(net.join("eth1")).unwrap();
        not_in_use(&fixture);
    }
}
