use std::fs;

use super::*;

/// A folder of its own, gone with it.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wsl-mirror-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn config(&self) -> PathBuf {
        self.0.join("config")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What has been told of until now: whether the configuration was part of it.
fn hears_of_config(files: &mut Files) -> bool {
    let mut heard = false;
    while let Ok(messages) = read(files.inotify.get_ref()) {
        heard |= files.sum_up(&messages) == Some(Event::Config);
    }
    heard
}

#[tokio::test]
async fn a_new_configuration_is_noticed_whatever_made_it() {
    let folder = Folder::new("comes");
    let (config, other) = (folder.config(), folder.0.join("other"));
    let mut files = Files::watch(&config).unwrap();
    fs::write(&other, "").unwrap();
    assert!(!hears_of_config(&mut files));
    fs::hard_link(&other, &config).unwrap();
    assert!(hears_of_config(&mut files), "ln");
    fs::remove_file(&config).unwrap();
    assert!(hears_of_config(&mut files), "rm");
    std::os::unix::fs::symlink(&other, &config).unwrap();
    assert!(hears_of_config(&mut files), "ln -s");
    fs::rename(&other, &config).unwrap();
    assert!(hears_of_config(&mut files), "mv");
    fs::remove_file(&config).unwrap();
    assert!(hears_of_config(&mut files));
    let file = fs::File::create(&config).unwrap();
    assert!(!hears_of_config(&mut files), "there is nothing in it yet");
    drop(file);
    assert!(hears_of_config(&mut files), "written");
}

#[tokio::test]
async fn a_configuration_lost_in_a_full_queue_is_noticed() {
    let folder = Folder::new("many");
    let mut files = Files::watch(&folder.config()).unwrap();
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let others = [folder.0.join("one"), folder.0.join("other")];
    // Of one and the same message, inotify keeps one.
    for count in 0..most.trim().parse::<usize>().unwrap() {
        fs::write(&others[count % 2], "").unwrap();
    }
    fs::write(folder.config(), "").unwrap();
    assert!(hears_of_config(&mut files));
}

#[tokio::test]
async fn a_folder_that_is_replaced_is_watched_again() {
    let folder = Folder::new("replaced");
    let inner = folder.0.join("inner");
    let config = inner.join("config");
    fs::create_dir(&inner).unwrap();
    let mut files = Files::watch(&config).unwrap();
    fs::rename(&inner, folder.0.join("old")).unwrap();
    fs::create_dir(&inner).unwrap();
    assert!(hears_of_config(&mut files), "moved away");
    fs::write(&config, "").unwrap();
    assert!(hears_of_config(&mut files), "in the new one");
    fs::remove_dir_all(&inner).unwrap();
    assert!(hears_of_config(&mut files), "removed");
    assert!(!files.watch_folder(), "there is none");
    fs::create_dir(&inner).unwrap();
    assert!(files.watch_folder());
    fs::write(&config, "").unwrap();
    assert!(hears_of_config(&mut files), "in the newest one");
}
