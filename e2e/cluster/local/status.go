package local

import (
	"context"
	"fmt"
	"strings"
)

// A Report says how the cluster is.
type Report struct {
	// Up is true if there is a cluster, well or not.
	Up bool
	// Ready is true if every process runs, and node and name server are ready.
	Ready bool
	// Problem says why it is not ready.
	Problem string
	// Components are the cluster's processes in order of start.
	Components []Component
	// Kubeconfig is the path of the administrator's kubeconfig.
	Kubeconfig string
	// Kubectl is the path of the kubectl of the cluster's version.
	Kubectl string
}

// A Component is a process of the cluster.
type Component struct {
	Name    string
	PID     int
	Running bool
	Memory  int64 // resident, in bytes
	Log     string
}

// Status reports how the cluster is. It changes nothing.
func Status(ctx context.Context, config Config) (Report, error) {
	c, err := config.complete()
	if err != nil {
		return Report{}, err
	}
	record, exists, err := c.loadState()
	if err != nil || !exists {
		return Report{Problem: errNotUp.Error()}, err
	}
	return c.status(ctx, record), nil
}

func (c Config) status(ctx context.Context, record state) Report {
	report := Report{Up: true, Kubeconfig: c.kubeconfig()}
	boot, err := bootID()
	if err != nil || boot != record.Boot {
		report.Problem = "the machine was started anew since the cluster was"
		return report
	}
	for _, folder := range record.Tools {
		if strings.Contains(folder, "/kubernetes-") {
			report.Kubectl = folder + "/kubectl"
		}
	}
	var stopped []string
	for _, p := range record.Processes {
		running := p.alive()
		if !running {
			stopped = append(stopped, p.Name)
		}
		report.Components = append(report.Components, Component{
			Name: p.Name, PID: p.PID, Running: running, Memory: p.memory(), Log: c.log(p.Name),
		})
	}
	if len(stopped) > 0 {
		report.Problem = "not running: " + strings.Join(stopped, ", ")
		return report
	}
	if err := c.ready(ctx); err != nil {
		report.Problem = err.Error()
		return report
	}
	report.Ready = true
	return report
}

// ready returns nil if the cluster can be used.
func (c Config) ready(ctx context.Context) error {
	clients, err := clientsOf(c.kubeconfig())
	if err != nil {
		return fmt.Errorf("the cluster was not brought up to its end: %w", err)
	}
	if err := nodeReady(ctx, clients); err != nil {
		return err
	}
	return nameServerReady(ctx, clients)
}
