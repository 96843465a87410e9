package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// modulePath is how the root of this repository is recognised.
const modulePath = "module github.com/outrigger-mesh/outrigger\n"

// Config says where things are. The zero value is what most callers want.
type Config struct {
	// State is the folder of the cluster: kubeconfig, certificates, logs, data.
	// Empty means outrigger/cluster in the user's cache folder.
	State string
	// Tools is the folder that keeps the programs built for the cluster.
	// Empty means outrigger/tools in the user's cache folder.
	Tools string
	// Source is the root of this repository. Empty means that it is looked for
	// from the working directory upwards, which suits go run and go test.
	Source string
	// Out gets a line for each step with its time. Nil means standard error.
	Out io.Writer
}

// complete returns c with every empty field set and every path absolute.
func (c Config) complete() (Config, error) {
	var err error
	if c.State, err = cacheFolder(c.State, "cluster"); err != nil {
		return c, err
	}
	if c.Tools, err = cacheFolder(c.Tools, "tools"); err != nil {
		return c, err
	}
	if c.Out == nil {
		c.Out = os.Stderr
	}
	return c, nil
}

// cacheFolder returns given as an absolute path or, when it is empty, the
// folder of that name in Outrigger's part of the user's cache.
func cacheFolder(given, name string) (string, error) {
	if given == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the user's cache folder: %w", err)
		}
		given = filepath.Join(cache, "outrigger", name)
	}
	return filepath.Abs(given)
}

// source returns the path of elements below the root of this repository, which
// is the nearest folder at or above the working directory that holds this
// module's go.mod. Only building asks for it, so that a cluster can be taken
// down from anywhere.
func (c Config) source(elements ...string) (string, error) {
	if c.Source != "" {
		return filepath.Join(append([]string{c.Source}, elements...)...), nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), modulePath) {
			return filepath.Join(append([]string{dir}, elements...)...), nil
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return "", errors.New("find the sources of Outrigger: no go.mod of it at or above the working directory")
	}
}

// id names the cluster wherever clusters of several state folders meet.
func (c Config) id() string {
	sum := sha256.Sum256([]byte(c.State))
	return "outrigger-" + hex.EncodeToString(sum[:4])
}

// runFolder returns the folder of the cluster's sockets. It is outside of the
// state folder because the path of a socket has little room (containerd allows
// 42 characters for the folder of its shims' sockets).
func (c Config) runFolder() string { return filepath.Join("/run", c.id()) }

func (c Config) kubeconfig() string   { return filepath.Join(c.State, "kubeconfig") }
func (c Config) logs() string         { return filepath.Join(c.State, "logs") }
func (c Config) certificates() string { return filepath.Join(c.State, "pki") }
func (c Config) socket() string       { return filepath.Join(c.runFolder(), "containerd.sock") }

// step runs do and prints what it was and how long it took.
func (c Config) step(what string, do func() error) error {
	start := time.Now()
	fmt.Fprintf(c.Out, "%-46s ", what)
	err := do()
	outcome := fmt.Sprintf("%6.1fs", time.Since(start).Seconds())
	if err != nil {
		outcome += "  failed"
	}
	fmt.Fprintln(c.Out, outcome)
	return err
}
