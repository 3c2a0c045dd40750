//! Holds the model against the kernel that this runs on: the checks on both, then random sequences in step.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use conformance::{Scene, checks, linux::Linux, map_cost, random};
use serde::Serialize;

/// Holds the model of /dev/vfio against this machine's.
///
/// The devices and all others of their groups must be vfio-pci's, a stub's or nobody's, and nobody may use them.
#[derive(Parser)]
struct Arguments {
    /// A device that vfio-pci has, as 0000:00:02.0; its whole group is used.
    #[arg(long = "device", required = true)]
    devices: Vec<String>,
    /// How many random sequences of 50 calls.
    #[arg(long, default_value_t = 2000)]
    sequences: u64,
    /// The first sequence's seed; each further one has the next number.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Without the checks.
    #[arg(long)]
    only_random: bool,
    /// In place of all that: what mapping 512 MiB for DMA costs by the library, against the bare ioctl. With two
    /// devices, of different groups.
    #[arg(long)]
    map_cost: bool,
}

/// What is printed, as one line.
#[derive(Serialize)]
struct Summary {
    kernel: &'static str,
    seed: u64,
    /// On the model, and on this machine.
    checks: Option<[checks::Results; 2]>,
    random: random::Report,
}

impl Summary {
    fn is_success(&self) -> bool {
        let checks = self.checks.iter().flatten();
        checks.into_iter().all(|results| results.failed.is_empty())
            && self.random.differences.is_empty()
    }
}

/// How many sequences there are between two signs of life.
const PROGRESS: u64 = 50;

fn compare(arguments: &Arguments) -> std::io::Result<Summary> {
    let begin = Instant::now();
    let mut linux = Linux::default();
    let scene = Scene::of_this_machine(&mut linux, &arguments.devices)?;
    eprintln!("conformance: {:?}", scene.description);
    let mut model = scene.description.clone().build();
    let checks = (!arguments.only_random)
        .then(|| [checks::run(&mut model, &scene), checks::run(&mut linux, &scene)]);
    let mut random = random::Report::default();
    for number in 0..arguments.sequences {
        if number.is_multiple_of(PROGRESS) {
            let (seconds, differences) = (begin.elapsed().as_secs_f64(), random.differences.len());
            eprintln!("conformance: {number} sequences, {differences} differences, {seconds:.1} s");
        }
        let seed = arguments.seed.wrapping_add(number);
        random::run(seed, &scene, &mut model, &mut linux, &mut random);
    }
    Ok(Summary { kernel: scene.description.kernel.version(), seed: arguments.seed, checks, random })
}

fn print_comparison(arguments: &Arguments) -> std::io::Result<bool> {
    let summary = compare(arguments)?;
    println!("{}", serde_json::to_string(&summary)?);
    Ok(summary.is_success())
}

/// Prints what mapping costs.
fn print_map_cost(devices: &[String]) -> std::io::Result<bool> {
    let [bare, library] = devices else {
        return Err(std::io::Error::other("give two devices, of different groups"));
    };
    let [bare, library] =
        [bare, library].map(|device| device.parse().map_err(std::io::Error::other));
    let report = map_cost::measure(bare?, library?)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(true)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let printed = if arguments.map_cost {
        print_map_cost(&arguments.devices)
    } else {
        print_comparison(&arguments)
    };
    match printed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
