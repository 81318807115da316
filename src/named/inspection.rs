//! What a VM tells of itself to whoever asks by its name: facts, as they are at that moment.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Info;
use crate::config::VmConfig;
use crate::guest::control::Known;
use crate::vm::{Metrics, RunningVm, State};

/// What is known of a VM with a name where it was started, and not by the VM itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The command that was started with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Where what it writes is kept, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
}

/// Whether a guest that was made to run commands runs them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestState {
    /// Not yet: it starts.
    Starting,
    /// It does.
    Ready,
    /// It could not be set up.
    Failed,
    /// Its agent has gone.
    Gone,
}

/// What a VM is and does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// What `husk ps` tells as well.
    #[serde(flatten)]
    pub info: Info,
    /// Where it is in its life.
    pub state: State,
    /// Whether its guest runs commands; nothing where it was not made for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestState>,
    /// What else was told when it got its name.
    #[serde(flatten)]
    pub about: About,
    /// The directory that paths in the configuration begin in.
    pub directory: PathBuf,
    /// The pseudo-terminal that its console is on, if it is on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_path: Option<PathBuf>,
    /// What it is made of.
    pub config: VmConfig,
    /// What its devices have done so far.
    pub metrics: Metrics,
}

impl Inspection {
    /// Of `vm`, now.
    pub(super) fn of(info: &Info, about: &About, vm: &RunningVm) -> Inspection {
        Inspection {
            info: info.clone(),
            state: vm.state(),
            guest: vm.agent_state().map(|known| match known {
                Known::Waiting => GuestState::Starting,
                Known::Ready => GuestState::Ready,
                Known::Failed(_) => GuestState::Failed,
                Known::Gone => GuestState::Gone,
            }),
            about: about.clone(),
            directory: std::env::current_dir().unwrap_or_default(),
            console_path: vm.console_path().map(ToOwned::to_owned),
            config: vm.config().clone(),
            metrics: vm.metrics(),
        }
    }
}
