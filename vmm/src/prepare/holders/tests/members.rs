//! One host for each kind of use, and for its neighbour that is no use.

use super::super::Opened;
use super::*;

pub(super) const GPU: &str = "0000:00:05.0";
pub(super) const AUDIO: &str = "0000:00:05.1";
pub(super) const NIC: &str = "0000:00:03.0";
pub(super) const USB: &str = "0000:00:14.0";

pub(super) fn below(device: &str, path: &str) -> String {
    format!("sys/devices/pci0000:00/{device}/{path}")
}

/// A host with an NVMe, a SATA disk, a NIC, a GPU with its audio, and a USB controller.
pub(super) fn host() -> Fixture {
    [
        ("0000:00:02.0", "0x010802", "nvme"),
        ("0000:00:1f.2", "0x010601", "ahci"),
        (NIC, "0x020000", "igb"),
        (GPU, "0x030000", "amdgpu"),
        (AUDIO, "0x040300", "snd_hda_intel"),
        (USB, "0x0c0330", "xhci_hcd"),
    ]
    .into_iter()
    .zip(1..)
    .fold(disks(), |fixture, ((device, class, driver), group)| {
        fixture.device(device, class, Some(group), Some(driver))
    })
    .link("sys/class/net/eth0", &below(NIC, "net/eth0"))
}

/// The uses of a device, in one text, and how they end.
pub(super) fn uses(fixture: &Fixture, device: &str) -> Option<(String, String)> {
    let found = summary(&holders(&fixture.tree()), device.parse().unwrap());
    found.map(|(what, remedy)| (what, remedy.unwrap_or_default()))
}

/// Asserts that exactly this is a use of the device, that it ends so, and that no other device is
/// in use.
pub(super) fn in_use(fixture: &Fixture, device: &str, what: &str, remedy: &str) {
    assert_eq!(uses(fixture, device), Some((what.to_owned(), remedy.to_owned())));
    let others = ["0000:00:02.0", "0000:00:1f.2", NIC, GPU, AUDIO, USB];
    others.iter().filter(|other| **other != device).for_each(|other| {
        assert_eq!(uses(fixture, other), None, "{other}, with {what}");
    });
}

pub(super) fn not_in_use(fixture: &Fixture) {
    assert_eq!(held(fixture), []);
}

#[test]
fn an_idle_host_uses_no_device() {
    not_in_use(&host());
}

const DISPLAY: &str =
    "use another device for the host's display: set the primary display in the firmware";

#[test]
fn a_display_is_a_use() {
    let boot = |value: &str| host().file(&below(GPU, "boot_vga"), value);
    in_use(&boot("1\n"), GPU, "its boot display (boot_vga)", DISPLAY);
    not_in_use(&boot("0\n"));

    let connector = below(GPU, "drm/card0/card0-DP-1");
    let monitor = |status: &str, enabled: &str| {
        host()
            .link("sys/class/drm/card0-DP-1", &connector)
            .file(&format!("{connector}/status"), status)
            .file(&format!("{connector}/enabled"), enabled)
    };
    let remedy = "connect the monitor to another device";
    in_use(&monitor("connected\n", "enabled\n"), GPU, "the monitor at card0-DP-1", remedy);
    not_in_use(&monitor("connected\n", "disabled\n"));
    not_in_use(&monitor("disconnected\n", "disabled\n"));
}

#[test]
fn a_framebuffer_is_a_use() {
    let fb0 = below(GPU, "graphics/fb0");
    let fixture = || {
        host()
            .link("sys/class/graphics/fb0", &fb0)
            .link("sys/class/graphics/fbcon", "sys/devices/virtual/graphics/fbcon")
            .file(&format!("{fb0}/name"), "amdgpudrmfb\n")
    };
    in_use(&fixture(), GPU, "the framebuffer fb0 (amdgpudrmfb)", DISPLAY);
    let console = fixture()
        .file("sys/class/vtconsole/vtcon1/name", "(M) frame buffer device\n")
        .file("sys/class/vtconsole/vtcon1/bind", "1\n");
    let what = "the framebuffer fb0 (amdgpudrmfb), which shows the console";
    in_use(&console, GPU, what, DISPLAY);
}

#[test]
fn a_framebuffer_of_the_firmware_uses_the_device_whose_bar_it_is_in() {
    for name in ["efifb", "simple-framebuffer", "BOOTFB", "vesafb"] {
        let iomem = format!(
            "c0000000-dfffffff : PCI Bus 0000:00\n  \
             c0000000-cfffffff : {GPU}\n    c0000000-c07e8fff : {name}\n  \
             d0000000-d0003fff : {NIC}\nfed00000-fed003ff : HPET 0\n"
        );
        let what = format!("the framebuffer of the firmware ({name})");
        in_use(&host().file("proc/iomem", iomem), GPU, &what, DISPLAY);
    }
    // VGA memory of no device.
    not_in_use(&host().file("proc/iomem", "e0000000-e07e8fff : efifb\n"));
}

#[test]
fn sound_that_plays_is_a_use() {
    let stream = |status: &str| {
        host()
            .link("sys/class/sound/pcmC1D3p", &below(AUDIO, "sound/card1/pcmC1D3p"))
            .link("sys/class/sound/card1", &below(AUDIO, "sound/card1"))
            .file("proc/asound/card1/pcm3p/sub0/status", status)
            .file("proc/asound/card1/pcm3p/info", "card: 1\n")
    };
    let remedy = "end what plays or records: fuser -v /dev/snd/pcmC1D3p";
    in_use(&stream("state: RUNNING\n"), AUDIO, "sound (pcmC1D3p)", remedy);
    not_in_use(&stream("closed\n"));
}

#[test]
fn a_serial_port_is_a_use_as_a_console_or_for_the_debugger() {
    let port = below(USB, "usb1/1-2/1-2:1.0/ttyUSB0/tty/ttyUSB0");
    let fixture = || host().link("sys/dev/char/188:0", &port).link("sys/class/tty/ttyUSB0", &port);
    let consoles = "tty0                 -WU (EC  p  )    4:1\n\
                    netcon0              -W- (E   p a)\n\
                    ttyUSB0              -W- (E   p  )  188:0\n";
    let console = fixture().file("proc/consoles", consoles);
    let remedy = "boot the host without console=ttyUSB0";
    in_use(&console, USB, "the kernel's console (ttyUSB0)", remedy);
    let kgdboc = |value: &str| fixture().file("sys/module/kgdboc/parameters/kgdboc", value);
    in_use(
        &kgdboc("kms,kbd,ttyUSB0,115200\n"),
        USB,
        "the kernel's debugger (kgdboc on ttyUSB0)",
        "echo '' > /sys/module/kgdboc/parameters/kgdboc",
    );
    not_in_use(&kgdboc("\n"));
}

#[test]
fn a_keyboard_or_mouse_uses_its_controller() {
    let device = |handlers: &str| {
        let folder = below(USB, "usb1/1-3/1-3:1.0/0003:046D:C31C.0001/input/input5");
        let sysfs = folder.strip_prefix("sys").unwrap();
        let text = format!(
            "I: Bus=0003 Vendor=046d\nN: Name=\"Logitech K120\"\nS: Sysfs={sysfs}\nH: Handlers={handlers}\n\n\
             I: Bus=0019\nN: Name=\"Power Button\"\nS: Sysfs=/devices/LNXSYSTM:00/input0\nH: Handlers=kbd event0 \n\n"
        );
        host().link("sys/class/input/input5", &folder).file("proc/bus/input/devices", text)
    };
    let remedy = |kind: &str| format!("connect the {kind} to another controller");
    let keyboard = device("sysrq kbd event3 leds ");
    in_use(&keyboard, USB, "a keyboard (Logitech K120)", &remedy("keyboard"));
    in_use(&device("event3 mouse0 "), USB, "a mouse (Logitech K120)", &remedy("mouse"));
    not_in_use(&device("event3 "));
}

#[test]
fn virtual_functions_use_their_physical_function() {
    let fixture = |count: &str| host().file(&below(NIC, "sriov_numvfs"), count);
    let remedy = format!("echo 0 > /sys/bus/pci/devices/{NIC}/sriov_numvfs");
    in_use(&fixture("4\n"), NIC, "its 4 virtual functions, which would disappear", &remedy);
    not_in_use(&fixture("0\n"));
}

#[test]
fn what_the_kernel_needs_a_function_for_is_a_use() {
    let cases = [
        ("sys/class/watchdog", "watchdog0", "the watchdog", Some(("state", "active", "inactive"))),
        ("sys/class/tpm", "tpm0", "the TPM", None),
        ("sys/class/ipmi", "ipmi0", "the management controller", None),
        ("sys/bus/mdev/devices", "83b8f4f2", "the mediated device", None),
        ("sys/bus/vdpa/devices", "vdpa0", "the vDPA device", None),
        ("sys/class/dma", "dma0chan0", "the DMA channel", Some(("in_use", "1", "0"))),
        ("sys/bus/cxl/devices", "mem0", "the CXL memory", None),
        ("sys/bus/thunderbolt/devices", "0-1", "the Thunderbolt device", None),
    ];
    for (folder, name, what, attribute) in cases {
        let real = below(USB, name);
        let fixture = || host().link(&format!("{folder}/{name}"), &real);
        let with = |value: Option<&str>| match attribute {
            Some((file, ..)) => fixture().file(&format!("{real}/{file}"), value.unwrap()),
            None => fixture(),
        };
        let (text, remedy) = uses(&with(attribute.map(|(_, busy, _)| busy)), USB).unwrap();
        assert_eq!(text, format!("{what} {name}"));
        assert!(!remedy.is_empty());
        if let Some((.., idle)) = attribute {
            not_in_use(&with(Some(idle)));
        }
    }
    not_in_use(&host().link("sys/bus/thunderbolt/devices/0-0", &below(USB, "domain0/0-0")));
}

#[test]
fn a_guest_of_xen_uses_its_device() {
    let fixture = host().device("0000:00:07.0", "0x0c0330", Some(8), Some("pciback"));
    let remedy = "xl pci-assignable-remove 0000:00:07.0";
    in_use(&fixture, "0000:00:07.0", "a guest of Xen (pciback)", remedy);
}

fn openers(fixture: &Fixture, device: &str) -> Option<String> {
    let address = device.parse().unwrap();
    let tree = fixture.tree();
    summary(&Opened::of(&tree).holders(&tree, &[address]), address).map(|(what, _)| what)
}

#[test]
fn a_process_that_has_a_node_of_the_device_open_is_a_use() {
    let node = |device: &str, path: &str, name: &str| {
        let file = format!("{}/uevent", below(device, path));
        host().file(&file, format!("MAJOR=1\nMINOR=2\nDEVNAME={name}\n"))
    };
    let cases = [
        (node(GPU, "drm/renderD128", "dri/renderD128"), GPU, "/dev/dri/renderD128"),
        (node(USB, "usb1/1-1", "bus/usb/001/002"), USB, "/dev/bus/usb/001/002"),
        (node(USB, "usb1/1-1/video0", "video0"), USB, "/dev/video0"),
        (node(NIC, "ptp/ptp0", "ptp0"), NIC, "/dev/ptp0"),
        (
            node(NIC, "infiniband_verbs/uverbs0", "infiniband/uverbs0"),
            NIC,
            "/dev/infiniband/uverbs0",
        ),
        (node("0000:00:1f.2", "ata1/host0/st0", "st0"), "0000:00:1f.2", "/dev/st0"),
        (host(), "0000:00:02.0", "/dev/nvme0n1p3"),
        (
            host().file(
                &format!("proc/driver/nvidia/gpus/{GPU}/information"),
                "Model: \t x\nDevice Minor: \t 0\n",
            ),
            GPU,
            "/dev/nvidia0",
        ),
    ];
    for (fixture, device, file) in cases {
        assert_eq!(openers(&fixture, device), None);
        let fixture = fixture
            .process(70, "sh", "/dev/null")
            .process(72, "nc", "socket:[7]")
            .process(71, "qemu", file);
        let what = format!("qemu (process 71), which has {file} open");
        assert_eq!(openers(&fixture, device), Some(what));
    }
}

#[test]
fn the_path_of_a_node_in_another_root_does_not_matter() {
    // In a root below /srv, where the kernel has no name for the node.
    let fixture = host().process(71, "qemu", "/srv/root/dev/nvme0n1p3");
    let what = "qemu (process 71), which has /dev/nvme0n1p3 open";
    assert_eq!(openers(&fixture, "0000:00:02.0").as_deref(), Some(what));
    // A file with such a path is no node.
    let file = host().file("home/dev/nvme0n1p3", "");
    let path = file.path("home/dev/nvme0n1p3");
    let file = file.process(71, "cat", path.to_str().unwrap());
    assert_eq!(openers(&file, "0000:00:02.0"), None);
    // By another name: /dev/zero is 1:5 on each host, and the kernel of this one calls it so.
    let fixture = host()
        .process(71, "qemu", "/dev/zero")
        .file("sys/dev/char/1:5/uevent", "MAJOR=1\nMINOR=5\nDEVNAME=nvme0n1p3\n");
    assert_eq!(openers(&fixture, "0000:00:02.0").as_deref(), Some(what));
}

#[test]
fn a_mixer_an_input_device_and_this_process_are_no_openers() {
    let control = format!("{}/uevent", below(AUDIO, "sound/card1/controlC1"));
    let fixture = host()
        .file(&control, "DEVNAME=snd/controlC1\n")
        .file(&format!("{}/uevent", below(USB, "usb1/input/event3")), "DEVNAME=input/event3\n");
    let fixture = fixture
        .process(71, "pipewire", "/dev/snd/controlC1")
        .process(72, "logind", "/dev/input/event3")
        .process(std::process::id(), "vmm", "/dev/nvme0n1p3");
    for device in [AUDIO, USB, "0000:00:02.0"] {
        assert_eq!(openers(&fixture, device), None);
    }
}
