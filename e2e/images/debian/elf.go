package debian

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/outrigger-mesh/outrigger/e2e/images/oci"
)

// Files returns the files of the tree that match the patterns (in the syntax of
// [path.Match], relative to the root of the file system, a file system merged
// into /usr assumed; of a folder, all that is below it), and the shared libraries and the dynamic linker that
// those need to start. The linker has the path that programs ask for; libraries
// lie in /usr/lib/<triplet>, where it looks. Programs that come from elsewhere
// and need libraries of the tree are given as foreign; they are not returned.
// A pattern that matches nothing is an error, as is a library that no package
// of the tree holds.
func (t *Tree) Files(patterns, foreign []string) ([]oci.File, error) {
	c := closure{tree: t, files: map[string]oci.File{}}
	for _, pattern := range patterns {
		if err := c.match(pattern); err != nil {
			return nil, err
		}
	}
	for _, program := range foreign {
		if err := c.needs(program); err != nil {
			return nil, err
		}
	}
	var files []oci.File
	for _, file := range c.files {
		files = append(files, file)
	}
	return files, nil // in any order: a layer sorts them
}

// LibraryDir returns the folder, in an image, that holds a tree's libraries.
func (t *Tree) LibraryDir() string { return path.Join("usr/lib", t.triplet) }

type closure struct {
	tree  *Tree
	files map[string]oci.File // by path in the image
}

// match adds the files that a pattern names, symbolic links as such.
func (c *closure) match(pattern string) error {
	found := false
	for _, at := range unmerged(pattern) {
		matches, err := filepath.Glob(filepath.Join(c.tree.root, at))
		if err != nil {
			return fmt.Errorf("pattern %q: %w", pattern, err)
		}
		for _, match := range matches {
			found = true
			if err := c.below(strings.TrimSuffix(pattern, at), match); err != nil {
				return err
			}
		}
	}
	if !found {
		return fmt.Errorf("no Debian package of this image holds a file %s", pattern)
	}
	return nil
}

// below adds a file or, of a folder, all files. Each keeps its place, after merged
// where a release of Debian has it elsewhere.
func (c *closure) below(merged, source string) error {
	return filepath.WalkDir(source, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(c.tree.root, file)
		if err != nil {
			return err
		}
		return c.add(path.Join(merged, filepath.ToSlash(name)), file)
	})
}

func (c *closure) add(name, source string) error {
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		link, err := os.Readlink(source)
		if err != nil {
			return err
		}
		c.files[name] = oci.File{Path: name, Link: link}
		return nil
	}
	c.files[name] = oci.File{Path: name, Source: source, Mode: info.Mode().Perm()}
	return c.needs(source)
}

// needs adds the libraries and the dynamic linker that a program or library
// asks for, and those that these ask for.
func (c *closure) needs(program string) error {
	file, err := elf.Open(program)
	if _, ok := errors.AsType[*elf.FormatError](err); ok || errors.Is(err, io.EOF) {
		return nil // not a program, or too short for one: it needs nothing
	}
	if err != nil {
		return fmt.Errorf("read what %s needs: %w", program, err)
	}
	defer func() { _ = file.Close() }()
	libraries, err := file.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("read what %s needs: %w", program, err)
	}
	for _, name := range libraries {
		if c.named(name) {
			continue
		}
		if err := c.library(path.Join(c.tree.LibraryDir(), name)); err != nil {
			return fmt.Errorf("%w, which %s needs", err, program)
		}
	}
	for _, prog := range file.Progs {
		if prog.Type != elf.PT_INTERP {
			continue
		}
		linker, err := io.ReadAll(prog.Open())
		if err != nil {
			return fmt.Errorf("read what %s needs: %w", program, err)
		}
		if err := c.library(strings.Trim(string(linker), "\x00/")); err != nil {
			return fmt.Errorf("%w, which %s needs", err, program)
		}
	}
	return nil
}

// named reports whether a file of that name is there, because a pattern before
// named it: programs with libraries of their own have them in folders of their own.
func (c *closure) named(library string) bool {
	for name := range c.files {
		if path.Base(name) == library {
			return true
		}
	}
	return false
}

// library adds the library or linker that is to lie at name. It becomes a plain
// file, whatever links and versioned names lead to it.
func (c *closure) library(name string) error {
	base := path.Base(name)
	// Programs name the linker in both ways; one copy is enough, and its
	// place is the one that the kernel is told.
	if strings.HasPrefix(base, "ld-linux") && path.Dir(name) == c.tree.LibraryDir() {
		return nil
	}
	if _, ok := c.files[name]; ok {
		return nil
	}
	for _, at := range unmerged(path.Join(c.tree.LibraryDir(), base)) {
		source, err := filepath.EvalSymlinks(filepath.Join(c.tree.root, at))
		if err != nil {
			continue
		}
		c.files[name] = oci.File{Path: name, Source: source, Mode: 0o755}
		return c.needs(source)
	}
	return fmt.Errorf("no Debian package of this image holds the library %s", base)
}

// unmerged returns where a package may keep what ends up at name: releases of
// Debian differ in whether their packages still have a /lib beside /usr/lib.
func unmerged(name string) []string {
	if old, ok := strings.CutPrefix(name, "usr/"); ok {
		return []string{name, old}
	}
	return []string{name}
}
