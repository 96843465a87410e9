package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A state is everything about a cluster that is outside of its folder, as far
// as it has to be undone. It is saved before each thing is done, so that it
// never knows too little; undoing what was not done after all is no error.
type state struct {
	// Boot is the boot of the machine that the rest is true for.
	Boot string `json:"boot"`
	// Tools are the cache folders that the cluster's programs come from.
	Tools []string `json:"tools"`
	// Run is the folder of sockets.
	Run string `json:"run"`
	// Processes are those of the control plane and the node, in order of start.
	Processes []process `json:"processes,omitempty"`
	// Bridge is the interface that the pods hang on.
	Bridge string `json:"bridge,omitempty"`
	// Tables are tables of packet filter rules, as nft names them: "ip kube-proxy".
	Tables []string `json:"tables,omitempty"`
	// HostTables are the tables of nft that were there before the cluster.
	HostTables []string `json:"hostTables,omitempty"`
	// Cgroup is the name below each hierarchy's root that the pods are under.
	Cgroup string `json:"cgroup,omitempty"`
	// Sysctls holds the value that each changed one had before.
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

func (c Config) stateFile() string { return filepath.Join(c.State, "state.json") }

// loadState returns the recorded state; ok is false if there is none.
func (c Config) loadState() (s state, ok bool, err error) {
	content, err := os.ReadFile(c.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, false, nil
	}
	if err != nil {
		return state{}, false, err
	}
	if err := json.Unmarshal(content, &s); err != nil {
		return state{}, false, fmt.Errorf("read %s: %w", c.stateFile(), err)
	}
	if s.Boot == "" || !filepath.IsAbs(s.Run) || s.Cgroup == "" {
		return state{}, false, fmt.Errorf("read %s: boot %q, run %q and cgroup %q must all be given", c.stateFile(), s.Boot, s.Run, s.Cgroup)
	}
	return s, true, nil
}

// saveState replaces the recorded state at once.
func (c Config) saveState(s state) error {
	content, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	partial := c.stateFile() + ".partial"
	if err := os.WriteFile(partial, append(content, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(partial, c.stateFile())
}

// bootID names the current boot of the machine.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}
