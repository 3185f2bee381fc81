//! The kernels that virtual machines boot: their list, their cache, their build.

mod build;
mod cache;
mod configuration;
mod known;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
pub(crate) use cache::OVERRIDE as KERNELS;
pub(crate) use known::Expectation;
use known::{KNOWN, Known};

use crate::table;

/// Which kernels run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    Default,
    All,
    /// By version or path.
    Named(Vec<String>),
}

/// A kernel that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// What `--kernel` takes for it.
    pub(crate) argument: String,
    pub(crate) image: PathBuf,
    pub(crate) expectation: Expectation,
    /// Checks itself, which takes its time.
    pub(crate) debug: bool,
}

/// A kernel of a selection, before anything is built.
#[derive(Debug)]
enum Source {
    Known(&'static Known),
    Image { name: String, argument: String, image: PathBuf },
}

impl Source {
    fn name(&self) -> &str {
        match self {
            Self::Known(known) => known.name,
            Self::Image { name, .. } => name,
        }
    }
}

/// Finds the kernels, and builds those that are in no cache.
///
/// # Errors
/// Nothing of that name is known, or building fails.
pub(crate) fn get(selection: &Selection) -> Result<Vec<Kernel>> {
    // A wrong name fails before minutes go into a build.
    let sources: Vec<Source> = match selection {
        Selection::Default => KNOWN.iter().filter(|known| known.by_default).map(Source::Known).collect(),
        Selection::All => KNOWN.iter().map(Source::Known).collect(),
        Selection::Named(names) => names.iter().map(|name| named(name)).collect::<Result<_>>()?,
    };
    for (index, one) in sources.iter().enumerate() {
        if sources[..index].iter().any(|other| other.name() == one.name()) {
            bail!("--kernel: two kernels are called {}, and results could not be told apart", one.name());
        }
    }
    sources
        .into_iter()
        .map(|source| match source {
            Source::Image { name, argument, image } => {
                Ok(Kernel { name, argument, image, expectation: Expectation::Works, debug: false })
            }
            Source::Known(known) => Ok(Kernel {
                name: known.name.to_owned(),
                argument: known.name.to_owned(),
                image: match cache::find(known) {
                    Some(image) => image,
                    None => build::build(known)?,
                },
                expectation: known.expectation,
                debug: known.debug,
            }),
        })
        .collect()
}

fn named(name: &str) -> Result<Source> {
    if let Some(known) = KNOWN.iter().find(|known| known.name == name) {
        return Ok(Source::Known(known));
    }
    let path = Path::new(name);
    if name.contains('/') {
        if !path.is_file() {
            bail!("--kernel {name}: there is no such file");
        }
        let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let short = file.strip_prefix("vmlinuz-").unwrap_or(&file).replace(char::is_whitespace, "_");
        return Ok(Source::Image { name: short, argument: name.to_owned(), image: path.canonicalize()? });
    }
    match cache::find_image(name) {
        Some(image) => Ok(Source::Image { name: name.to_owned(), argument: name.to_owned(), image }),
        None => bail!(
            "--kernel {name}: known are {}; for any other, give the path of its bzImage (with a slash in it), or \
             put it into {} as vmlinuz-{name}",
            KNOWN.map(|known| known.name).join(", "),
            cache::folders().iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or "),
        ),
    }
}

/// All kernels as a table.
pub(crate) fn list() -> String {
    let rows: Vec<[String; 4]> = KNOWN
        .iter()
        .map(|known| {
            let image = cache::find(known).map_or_else(
                || format!("to be built from {}", known.package),
                |image| image.display().to_string(),
            );
            let when = if known.by_default { "by default" } else { "--all" };
            [known.name.to_owned(), when.to_owned(), image, known.why.to_owned()]
        })
        .collect();
    let others = cache::others();
    let others = others.into_iter().map(|(name, image)| {
        [name, "by name".to_owned(), image.display().to_string(), "put there by the user".to_owned()]
    });
    let rows: Vec<_> = rows.into_iter().chain(others).collect();
    table::plain(["kernel", "runs", "image", "what for"], &rows, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_has_a_name_or_a_path() {
        assert!(matches!(named("6.12"), Ok(Source::Known(Known { name: "6.12", .. }))));
        let itself = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
        match named(&itself.to_string_lossy()) {
            Ok(Source::Image { image, .. }) => assert_eq!(image, itself),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn two_kernels_of_one_name_are_refused() {
        let twice = Selection::Named(vec!["6.12".to_owned(), "6.12".to_owned()]);
        let error = get(&twice).map_or_else(|error| error.to_string(), |kernels| format!("{kernels:?}"));
        assert!(error.contains("two kernels are called 6.12"), "{error}");
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_those_that_are() {
        let text = |name| named(name).map_or_else(|error| error.to_string(), |source| format!("{source:?}"));
        assert!(text("6.13").contains("known are 6.1, 6.12, 7.2, 5.10, 7.2-debug"), "{}", text("6.13"));
        assert!(text("/nowhere/vmlinuz").contains("no such file"), "{}", text("/nowhere/vmlinuz"));
    }
}
