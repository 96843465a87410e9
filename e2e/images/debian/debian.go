// Package debian takes files out of Debian's packages, without installing
// them, for images that need a C library or iptables.
//
// It uses the package lists and keys of the machine that it runs on, so the
// files are of that machine's release of Debian, verified by apt. Where a
// release keeps a library does not matter: [Tree.Files] finds it by name and
// gives it a place of our own.
package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/outrigger-mesh/outrigger/e2e/images/cache"
)

// A Tree is a folder that holds the unpacked files of some packages.
type Tree struct {
	root    string
	triplet string
}

// Unpack returns the files of the named packages and of all that they depend
// on, for the architecture arch in Go's spelling. The folder is kept in the
// user's cache and made again when a package has a newer version.
func Unpack(ctx context.Context, arch string, packages ...string) (*Tree, error) {
	triplet, ok := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[arch]
	if !ok {
		return nil, fmt.Errorf("unpack Debian packages: architecture %q is not known, only amd64 and arm64", arch)
	}
	dir, err := unpack(ctx, arch, packages)
	if err != nil {
		// A fresh machine has no package lists, and old lists name versions
		// that are gone.
		if os.Getuid() != 0 {
			return nil, fmt.Errorf("unpack Debian packages %v: %w\nthe package lists may be out of date: "+
				"run apt-get update as root", packages, err)
		}
		if _, updateErr := run(ctx, "", "apt-get", "update", "-q"); updateErr != nil {
			return nil, fmt.Errorf("unpack Debian packages %v: %w", packages, errors.Join(err, updateErr))
		}
		if dir, err = unpack(ctx, arch, packages); err != nil {
			return nil, fmt.Errorf("unpack Debian packages %v: %w", packages, err)
		}
	}
	return &Tree{root: filepath.Join(dir, "root"), triplet: triplet}, nil
}

// unpack returns the cached folder that holds the packages.
func unpack(ctx context.Context, arch string, packages []string) (string, error) {
	pinned, err := resolve(ctx, arch, packages)
	if err != nil {
		return "", err
	}
	dir, err := cache.Dir("images", "debian", packages[0]+"-"+arch+"-"+digest(pinned))
	if err != nil {
		return "", err
	}
	return dir, cache.Once(ctx, dir, func(tmp string) error { return fetch(ctx, tmp, pinned) })
}

// resolve returns "name:arch=version" for the packages and for all that they
// depend on, sorted. Apt takes a second or two to say so; the answer is kept for
// as long as the package lists stay the same.
func resolve(ctx context.Context, arch string, packages []string) ([]string, error) {
	question := append([]string{arch}, packages...)
	lists, err := os.ReadDir("/var/lib/apt/lists")
	if err != nil {
		return nil, fmt.Errorf("read package lists: %w", err)
	}
	for _, list := range lists {
		if info, err := list.Info(); err == nil && info.Mode().IsRegular() {
			question = append(question, fmt.Sprint(info.Name(), info.Size(), info.ModTime().UnixNano()))
		}
	}
	dir, err := cache.Dir("images", "debian", "resolved-"+digest(question))
	if err != nil {
		return nil, err
	}
	err = cache.Once(ctx, dir, func(tmp string) error {
		pinned, err := ask(ctx, arch, packages)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(tmp, "packages"), []byte(strings.Join(pinned, "\n")), 0o644)
	})
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "packages"))
	return strings.Split(string(text), "\n"), err
}

func digest(words []string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\n")))
	return hex.EncodeToString(sum[:8])
}

func ask(ctx context.Context, arch string, packages []string) ([]string, error) {
	args := []string{
		"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
		"--no-breaks", "--no-replaces", "--no-enhances",
	}
	for _, name := range packages {
		args = append(args, name+":"+arch)
	}
	out, err := run(ctx, "", "apt-cache", args...)
	if err != nil && arch != runtime.GOARCH {
		return nil, fmt.Errorf("%w\nfor packages of another architecture, run dpkg --add-architecture %s first", err, arch)
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		// Indented lines are single dependencies; names in angle brackets
		// are virtual, and what provides them is listed by itself.
		if line != "" && !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "<") {
			name, _, _ := strings.Cut(line, ":")
			names = append(names, name+":"+arch)
		}
	}
	out, err = run(ctx, "", "apt-cache", append([]string{"policy"}, names...)...)
	if err != nil {
		return nil, err
	}
	return candidates(out, arch)
}

// candidates reads the versions that apt would install out of what apt-cache
// policy prints:
//
//	libc6:
//	  Installed: (none)
//	  Candidate: 2.36-9
func candidates(policy, arch string) ([]string, error) {
	var pinned []string
	var name string
	for line := range strings.Lines(policy) {
		if !strings.HasPrefix(line, " ") {
			name, _, _ = strings.Cut(line, ":")
			continue
		}
		version, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: ")
		if !ok {
			continue
		}
		if version == "(none)" {
			return nil, fmt.Errorf("package %s has no version for %s in the package lists", name, arch)
		}
		pinned = append(pinned, name+":"+arch+"="+version)
	}
	if len(pinned) == 0 {
		return nil, errors.New("the package lists know none of them")
	}
	slices.Sort(pinned)
	return slices.Compact(pinned), nil
}

// fetch downloads packages and unpacks them, one over the other, into dir/root.
func fetch(ctx context.Context, dir string, pinned []string) error {
	// The option spares root a warning that the folder is not the sandbox user's.
	download := append([]string{"-q", "-o", "APT::Sandbox::User=root", "download"}, pinned...)
	if _, err := run(ctx, dir, "apt-get", download...); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "root"), 0o755); err != nil {
		return err
	}
	for _, archive := range archives {
		if _, err := run(ctx, "", "dpkg-deb", "-x", archive, filepath.Join(dir, "root")); err != nil {
			return err
		}
		if err := os.Remove(archive); err != nil {
			return err
		}
	}
	return nil
}

// run runs a command in dir and returns what it wrote to its standard output;
// the error holds what it wrote to the other.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, diag strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s %v: %w\n%s", name, args, err, diag.String())
	}
	return out.String(), nil
}
