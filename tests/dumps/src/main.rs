//! trial
use std::path::PathBuf;
fn main() {
    let files: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    for file in files {
        let functions = dumps::dump::parse(&std::fs::read_to_string(&file).unwrap());
        let mut all = String::new();
        for f in &functions {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            print!("{name} {} {} [{}] ", f.address, f.title, f.config.len());
            match dumps::guest::assign(f) {
                Err(e) => println!("REFUSED {e}"),
                Ok(a) => {
                    fuzz::shown::check(&a.function, &*a.device);
                    let size = if f.config.len() < 4096 {256} else {4096};
                    let view = a.config(size);
                    let d = dumps::difference::between(&f.config, &view);
                    println!("{:?} {:?} FAULTS {:x?}", d.hidden, d.changed, d.faults);
                    all += &dumps::dump::print(f.address, &view);
                }
            }
        }
        let text = dumps::lspci::read_text(&all).unwrap();
        for line in dumps::lspci::complaints(&text) { println!("COMPLAINT {line}"); }
        let text = dumps::lspci::read(&file).unwrap();
        for line in dumps::lspci::complaints(&text) { println!("ORIGINAL COMPLAINT {line}"); }
    }
}
