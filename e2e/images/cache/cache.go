// Package cache keeps what is costly to fetch or to make under the user's
// cache folder, so that a second run is quick.
//
// Several processes may use it at the same moment: the tests of several
// packages, a demo and a developer. Each entry is made once, under a lock, and
// appears whole or not at all. Nothing here knows what an entry holds; see
// packages envoybin, debian and oci for that.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Dir returns the folder in which Outrigger keeps what can be made again, joined
// with elem: below $XDG_CACHE_HOME, or below ~/.cache where that is not set. The
// folder need not exist.
func Dir(elem ...string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder (set HOME or XDG_CACHE_HOME): %w", err)
	}
	return filepath.Join(append([]string{base, "outrigger"}, elem...)...), nil
}

// Lock waits until no other process holds the lock file at path, or until ctx
// ends, and takes it. It makes the file and its folder where absent, and leaves
// the file behind: removing it would let two processes hold two files of one
// name. A process that dies lets go of its locks.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make folder for lock: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	// A blocking flock cannot be interrupted by ctx, so ask again and again.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("wait for lock %s: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// Once makes sure that the folder dir exists. Where it does not, Once calls fill
// with an empty folder on the same file system and renames that folder to dir
// when fill succeeds. Among processes and goroutines that ask for the same dir
// at the same moment one fills it and the others wait.
func Once(ctx context.Context, dir string, fill func(tmp string) error) error {
	if exists(dir) {
		return nil
	}
	unlock, err := Lock(ctx, dir+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if exists(dir) {
		return nil
	}
	// Whatever is left here belongs to a process that died: we hold the lock.
	tmp := dir + ".partial"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("clear unfinished cache entry: %w", err)
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return fmt.Errorf("start cache entry: %w", err)
	}
	if err := fill(tmp); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("finish cache entry: %w", err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
