//! The configuration as command-line flags, laid over a file or the defaults.

use std::path::Path;

use clap::{ArgMatches, Args, Command, FromArgMatches};

use super::{Config, ConfigError};

/// All flags of [`Config`], none of them required: flatten it into a program's arguments and
/// [`resolve`](Self::resolve) it against the file.
#[derive(Clone, Debug)]
pub struct ConfigFlags(ArgMatches);

impl ConfigFlags {
    /// The file (or the defaults without one), with the flags that were given laid over it.
    ///
    /// # Errors
    /// As [`Config::load`]; the check is made on the outcome.
    pub fn resolve(&self, file: Option<&Path>) -> Result<Config, ConfigError> {
        let mut config = match file {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        config.update_from_arg_matches(&self.0)?;
        config.check()?;
        Ok(config)
    }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(matches.clone()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = matches.clone();
        Ok(())
    }
}

impl Args for ConfigFlags {
    fn augment_args(command: Command) -> Command {
        // In the form for updates no argument is required: what is absent keeps its value.
        Config::augment_args_for_update(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Config::augment_args_for_update(command)
    }
}
