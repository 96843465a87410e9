package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process is one that outlives the program that started it. Its number alone
// does not name it, since numbers are used again; with its start time it does.
type process struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since boot
}

// startDetached starts the program at path in a session of its own, with its
// output in the file log.
func startDetached(ctx context.Context, path, log string, env []string, flags ...string) (process, error) {
	out, err := os.Create(log)
	if err != nil {
		return process{}, err
	}
	defer out.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), path, flags...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return process{}, fmt.Errorf("start %s: %w", path, err)
	}
	p, err := findProcess(cmd.Process.Pid)
	if err != nil {
		return process{}, err
	}
	p.Name = filepath.Base(path)
	return p, cmd.Process.Release()
}

// findProcess returns the process that has the number now.
func findProcess(pid int) (process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	start, _, err := parseStat(string(stat))
	return process{PID: pid, Start: start}, err
}

// parseStat reads the start time and the state from the content of a
// /proc/<pid>/stat. The name in it may hold spaces and parentheses.
func parseStat(stat string) (start uint64, status string, err error) {
	const startField = 22 - 3 // counted from the first one behind the name
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= startField {
		return 0, "", fmt.Errorf("parse process status %q: too few fields", stat)
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	return start, fields[0], err
}

// alive reports whether p still runs.
func (p process) alive() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	start, status, err := parseStat(string(stat))
	return err == nil && start == p.Start && status != "Z" && status != "X"
}

// memory returns the bytes that p has resident.
func (p process) memory() int64 {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// kill ends the processes and returns when all of them are gone. Those that are
// gone already, or whose number belongs to another one by now, are left alone.
// None has anything to save: the cluster's data goes with it.
func kill(processes []process) error {
	var errs []error
	var waiting []int
	for _, p := range processes {
		fd, err := unix.PidfdOpen(p.PID, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("open process %d: %w", p.PID, err))
			continue
		}
		defer func() { _ = unix.Close(fd) }()
		// Asked after opening: from here on the descriptor means this process only.
		if !p.alive() {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", p.PID, err))
			continue
		}
		waiting = append(waiting, fd)
	}
	for _, fd := range waiting {
		if err := waitGone(fd); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// waitGone returns when the killed process that fd is open for is gone.
func waitGone(fd int) error {
	const patience = 20_000 // milliseconds; the kernel may have to finish writing first
	for {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for a killed process: %w", err)
		case ready == 0:
			return errors.New("wait for a killed process: still there")
		}
		return nil
	}
}

// processesWhere returns the running processes whose arguments satisfy match.
func processesWhere(match func(args []string) bool) ([]process, error) {
	folders, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, folder := range folders {
		pid, err := strconv.Atoi(filepath.Base(folder))
		if err != nil {
			continue
		}
		p, err := findProcess(pid)
		if err != nil {
			continue // gone in the meantime
		}
		// Read between two looks at the start time by kill, so it is this process's.
		args, err := os.ReadFile(filepath.Join(folder, "cmdline"))
		if err == nil && match(strings.Split(string(args), "\x00")) {
			found = append(found, p)
		}
	}
	return found, nil
}
