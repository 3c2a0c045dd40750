//! Where the tests run: real kernels in L1, with QEMU's igb, and the model.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use clap::ValueEnum;
use lab::protocol::{Program, Request};
use lab::tap::Results;
use lab::{Arch, Device, Echo, Error, Kernel, L1, Lab, Machine, VFIO_SELFTESTS, on_model, say};

/// The folder of the host's root in L1.
const HOST: &str = "/host";

/// The program whose tests need a device that does DMA.
const DMA: &str = "vfio_pci_driver_test";

/// Where tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// Linux 6.12 in L1.
    #[value(name = "6.12")]
    Linux612,
    /// Linux 7.3 in L1.
    #[value(name = "7.3")]
    Linux73,
    /// The model with the rules of 6.12.
    #[value(name = "model-6.12")]
    Model612,
    /// The model with the rules of 7.3.
    #[value(name = "model-7.3")]
    Model73,
}

/// A program that ran.
pub struct Ran {
    /// Its name.
    pub program: &'static str,
    /// Its cases. None if it does not apply to the device.
    pub results: Results,
    /// How long it took.
    pub seconds: u64,
}

impl Place {
    /// All places, in the order of the table's columns.
    pub const ALL: [Self; 4] = [Self::Linux612, Self::Linux73, Self::Model612, Self::Model73];

    /// Those that are chosen, or all.
    pub fn chosen(places: &[Self]) -> Vec<Self> {
        if places.is_empty() { Self::ALL.to_vec() } else { places.to_vec() }
    }

    /// The name in the table and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux612 => "6.12",
            Self::Linux73 => "7.3",
            Self::Model612 => "model of 6.12",
            Self::Model73 => "model of 7.3",
        }
    }

    /// Runs the programs, which are in `folder`.
    pub fn run(self, folder: &Path, short: bool) -> Result<Vec<Ran>, Error> {
        match self {
            Self::Linux612 => in_l1(Kernel::Small, folder, short),
            Self::Linux73 => in_l1(Kernel::Small73, folder, short),
            Self::Model612 => on_the_model("6.12", folder),
            Self::Model73 => on_the_model("7.3", folder),
        }
    }
}

fn on_the_model(kernel: &str, folder: &Path) -> Result<Vec<Ran>, Error> {
    let on_model = on_model()?;
    let run = |program: &&'static str| {
        let start = Instant::now();
        let path = folder.join("dynamic").join(program);
        let mut command = Command::new(&on_model);
        command.args(["--kernel", kernel, "--huge-pages"]).arg(path).arg("0000:01:00.0");
        let output = command.output().map_err(Error::file("start", &on_model))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code();
        ran(program, code, &text, &errors, start.elapsed().as_secs())
    };
    VFIO_SELFTESTS.iter().map(run).collect()
}

fn in_l1(kernel: Kernel, folder: &Path, short: bool) -> Result<Vec<Ran>, Error> {
    let lab = Lab::set_up(Arch::X86_64)?;
    // A test of DMA maps 1 GiB.
    let machine = Machine::new(kernel).memory_mib(3072).devices(&[Device::Igb]).with_host_share();
    say(&format!("booting L1 with {} and an igb", kernel.name()));
    let mut l1 = L1::boot(&lab, &machine, Echo::Silent)?;
    let device = prepare(&mut l1)?;
    let wanted = VFIO_SELFTESTS.iter().filter(|program| !short || **program != DMA);
    let run = |program: &&'static str| {
        let path = format!("{HOST}{}", folder.join("static").join(program).display());
        let arguments = vec![path, device.clone()];
        let run = l1.run(Program { arguments, ..Program::default() })?;
        let seconds = run.finished.elapsed_ns / 1_000_000_000;
        ran(program, None, &run.stdout, &run.stderr, seconds)
    };
    wanted.map(run).collect()
}

/// Binds the device to vfio-pci, which may make virtual functions of it. Some tests use huge pages.
fn prepare(l1: &mut L1) -> Result<String, Error> {
    l1.perform(&Request::Share { at: HOST.into() })?;
    for (path, contents) in
        [("/proc/sys/vm/nr_hugepages", "64"), ("/sys/module/vfio_pci/parameters/enable_sriov", "Y")]
    {
        l1.perform(&Request::Write { path: path.into(), contents: contents.into() })?;
    }
    let device = l1.machine().address_of(Device::Igb);
    l1.bind(&device, Some("vfio-pci"))?;
    Ok(device)
}

/// The status of a program of which no test applies (`KSFT_SKIP`).
const SKIPPED: i32 = 4;

fn ran(
    program: &'static str,
    code: Option<i32>,
    output: &str,
    errors: &str,
    seconds: u64,
) -> Result<Ran, Error> {
    let results = Results::of(output);
    match results.is_complete() || code == Some(SKIPPED) {
        true => Ok(Ran { program, results, seconds }),
        false => Err(Error::Command {
            command: program.to_owned(),
            why: format!("it ended early\n{output}{errors}"),
        }),
    }
}
