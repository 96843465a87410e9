package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// clean undoes everything that record names and deletes the cluster's files,
// except for the logs. It works the same whether the cluster runs, has crashed
// or was lost in a reboot, and may be repeated. The order matters: whoever
// restarts things goes before the things.
func (c Config) clean(ctx context.Context, record state) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	if record.Boot == boot {
		slices.Reverse(record.Processes) // the kubelet before containerd, etcd last
		if err := kill(record.Processes); err != nil {
			return err
		}
		if err := killContainers(record); err != nil {
			return err
		}
		if err := restoreSysctls(record); err != nil {
			return err
		}
	}
	if err := unmountBelow(c.State, record.Run); err != nil {
		return err
	}
	if err := removeCgroups(record.Cgroup); err != nil {
		return err
	}
	if _, err := net.InterfaceByName(record.Bridge); record.Bridge != "" && err == nil {
		if _, err := output(ctx, "/", "ip", "link", "delete", record.Bridge, "type", "bridge"); err != nil {
			return err
		}
	}
	if err := removeTables(ctx, record); err != nil {
		return err
	}
	if err := removeTraces(ctx, c.State, record.Run); err != nil {
		return err
	}
	return c.removeFiles(record)
}

// killContainers ends the containers' processes and the shims that watch them.
// A shim is known by the socket of the containerd that it reports to, a
// container by the cgroup that all pods are under.
func killContainers(record state) error {
	shims, err := processesWhere(func(args []string) bool {
		i := slices.Index(args, "-address")
		return i >= 0 && i+1 < len(args) && args[i+1] == filepath.Join(record.Run, "containerd.sock")
	})
	if err != nil {
		return err
	}
	if err := kill(shims); err != nil {
		return err
	}
	// Again until there is none, since a process may start another one meanwhile.
	for {
		processes, err := cgroupProcesses(record.Cgroup)
		if err != nil || len(processes) == 0 {
			return err
		}
		if err := kill(processes); err != nil {
			return err
		}
	}
}

// cgroupFolders returns the folder of the named cgroup in each hierarchy.
func cgroupFolders(name string) ([]string, error) {
	if name == "" {
		return nil, nil
	}
	mounts, err := mountPoints()
	if err != nil {
		return nil, err
	}
	var folders []string
	for _, mount := range mounts {
		if mount.kind == "cgroup" || mount.kind == "cgroup2" {
			folders = append(folders, filepath.Join(mount.path, name))
		}
	}
	return folders, nil
}

// makeCgroups makes the cgroup that the kubelet puts its pods under, which it
// expects to find.
func makeCgroups(name string) error {
	folders, err := cgroupFolders(name)
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

// walkCgroups calls do for each cgroup from the named one down, innermost first.
func walkCgroups(name string, do func(folder string) error) error {
	roots, err := cgroupFolders(name)
	if err != nil {
		return err
	}
	for _, root := range roots {
		var folders []string
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed while we looked
			}
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, folder := range slices.Backward(folders) {
			if err := do(folder); err != nil {
				return err
			}
		}
	}
	return nil
}

// cgroupProcesses returns the processes in the named cgroup and below.
func cgroupProcesses(name string) ([]process, error) {
	var found []process
	err := walkCgroups(name, func(folder string) error {
		content, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
		if err != nil {
			return nil // gone, or a kind of cgroup that holds threads only
		}
		for field := range strings.FieldsSeq(string(content)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			if p, err := findProcess(pid); err == nil && p.alive() && !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
		return nil
	})
	return found, err
}

func removeCgroups(name string) error {
	return walkCgroups(name, func(folder string) error {
		if err := os.Remove(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		return nil
	})
}

func restoreSysctls(record state) error {
	for _, name := range slices.Sorted(maps.Keys(record.Sysctls)) {
		value := record.Sysctls[name]
		now, err := readSysctl(name)
		if err != nil || now == value {
			continue // an interface that is gone has no settings
		}
		if err := writeSysctl(name, value); err != nil {
			return err
		}
	}
	return nil
}

// A mount is a line of /proc/self/mountinfo.
type mount struct{ path, kind string }

func mountPoints() ([]mount, error) {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(content)), nil
}

// parseMounts returns the mounts in the order in which they were made.
func parseMounts(mountinfo string) []mount {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []mount
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		kind := strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) == 0 {
			continue
		}
		mounts = append(mounts, mount{path: unescape.Replace(fields[4]), kind: kind[0]})
	}
	return mounts
}

// unmountBelow unmounts everything below the folders, last mounted first.
func unmountBelow(folders ...string) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, mount := range slices.Backward(mounts) {
		for _, folder := range folders {
			if folder == "" || !strings.HasPrefix(mount.path, folder+"/") {
				continue
			}
			err := unix.Unmount(mount.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("unmount %s: %w", mount.path, err)
			}
		}
	}
	return nil
}

// removeFiles deletes the cluster's files except for its logs; state.json last,
// since without it nobody knows what else to undo.
func (c Config) removeFiles(record state) error {
	if err := os.RemoveAll(record.Run); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.State)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		switch path := filepath.Join(c.State, entry.Name()); path {
		case c.logs(), c.stateFile(), c.lockFile():
		default:
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(c.stateFile()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeTraces removes what kubelet and CNI library keep for the cluster with
// these folders in places that cannot be chosen. The places themselves go when
// nothing else is in them.
func removeTraces(ctx context.Context, state, run string) error {
	const devices = "/var/lib/kubelet/device-plugins"
	err := errors.Join(
		removeLinksInto("/var/log/containers", filepath.Join(state, "pods")),
		removeCNIResults("/var/lib/cni/results", run),
		removeDeadSocket(ctx, filepath.Join(devices, "kubelet.sock")),
	)
	for _, folder := range []string{"/var/log/containers", "/var/lib/cni/results", "/var/lib/cni", devices, "/var/lib/kubelet"} {
		removed := os.Remove(folder)
		if !errors.Is(removed, fs.ErrNotExist) && !errors.Is(removed, unix.ENOTEMPTY) {
			err = errors.Join(err, removed)
		}
	}
	return err
}

// removeDeadSocket removes the socket at path if nobody listens on it.
func removeDeadSocket(ctx context.Context, path string) error {
	connection, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		return connection.Close()
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(path)
	}
	return nil
}

// removeLinksInto removes the symbolic links in folder that lead to below
// target. The kubelet makes one for each container.
func removeLinksInto(folder, target string) error {
	links, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		return err
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, target+"/") {
			if err := os.Remove(link); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeCNIResults removes what the CNI library remembers in folder of network
// namespaces below the folder run.
func removeCNIResults(folder, run string) error {
	files, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var result struct {
			NetNS string `json:"netns"`
		}
		if json.Unmarshal(content, &result) == nil && strings.HasPrefix(result.NetNS, run+"/") {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
	return nil
}
