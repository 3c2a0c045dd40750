//! Holds the model against the kernel that this runs on: the checks on both, then random sequences in step.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use conformance::{Scene, checks, linux::Linux, random};
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
        checks.into_iter().all(|results| results.failed.is_empty()) && self.random.differences.is_empty()
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
    let checks =
        (!arguments.only_random).then(|| [checks::run(&mut model, &scene), checks::run(&mut linux, &scene)]);
    let mut random = random::Report::default();
    for number in 0..arguments.sequences {
        if number.is_multiple_of(PROGRESS) {
            let (seconds, differences) = (begin.elapsed().as_secs_f64(), random.differences.len());
            eprintln!("conformance: {number} sequences, {differences} differences, {seconds:.1} s");
        }
        let seed = arguments.seed.wrapping_add(number);
        random::run(seed, &scene, &mut model, &mut linux, &mut random);
    }
    Ok(Summary {
        kernel: scene.description.kernel.version(),
        seed: arguments.seed,
        checks,
        random,
    })
}

fn main() -> ExitCode {
    let summary = compare(&Arguments::parse());
    let printed = summary.and_then(|summary| {
        println!("{}", serde_json::to_string(&summary)?);
        Ok(summary.is_success())
    });
    match printed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
