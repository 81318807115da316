//! `husk ps`: the VMs that have a name.

use std::fmt::Write as _;
use std::time::SystemTime;

use clap::Args;
use husk::named;

use super::Error;
use super::stdout::print;

/// List the VMs that have a name
#[derive(Args)]
pub struct Ps {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
    /// List those that have ended, too, as far as they were detached and are remembered
    #[arg(long)]
    all: bool,
}

impl Ps {
    /// Prints the list.
    pub fn execute(self) -> Result<u8, Error> {
        let running = named::list()?;
        let ended = if self.all { named::ended()? } else { Vec::new() };
        if self.json {
            let running = running.iter().map(serde_json::to_value);
            let all: Vec<_> =
                running.chain(ended.iter().map(serde_json::to_value)).collect::<Result<_, _>>()?;
            print(&(serde_json::to_string_pretty(&all)? + "\n"))?;
            return Ok(0);
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let mut text = format!("{:<20} {:>8} {:>10}  KERNEL\n", "NAME", "PID", "SECONDS");
        for vm in running {
            let (age, kernel) = match vm.answers {
                true => (now.saturating_sub(vm.since).to_string(), &vm.kernel[..]),
                false => ("-".to_owned(), "(does not answer)"),
            };
            writeln!(text, "{:<20} {:>8} {age:>10}  {kernel}", vm.name, vm.pid)?;
        }
        for vm in ended {
            let age = vm.ended.map(|ended| ended.saturating_sub(vm.since).to_string());
            let how = match vm.status {
                Some(status) => format!("ended with {status}"),
                None => "its husk was killed".to_owned(),
            };
            let age = age.as_deref().unwrap_or("-");
            writeln!(text, "{:<20} {:>8} {age:>10}  ({how})", vm.name, "-")?;
        }
        print(&text)?;
        Ok(0)
    }
}
