package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
	"github.com/outrigger-mesh/outrigger/internal/sidecar"
)

const (
	// AuthoritiesConfigMap holds, in the system namespace, who signs and is trusted.
	AuthoritiesConfigMap = "outrigger-authorities"
	// StateKey is what every replica follows; the elected one alone writes it.
	StateKey = "state"
	// WantedKey is what people want. The command line writes it, and the elected
	// replica while roles decide: what they said last holds when they are gone.
	WantedKey = "wanted"
	// ChartKey is the authority of the chart's values, for the command line.
	ChartKey = "chart"
	// ReportLabel marks the ConfigMaps in which replicas report; its value is the
	// mesh's name.
	ReportLabel = "outrigger.dev/report"
	// reportKey is the report in one.
	reportKey = "report"
	// reportPrefix comes before the replica's name.
	reportPrefix = "outrigger-report-"
)

// Authorities is what the ConfigMap says.
type Authorities struct {
	// Object is nil where there is none yet.
	Object *corev1.ConfigMap
	State  rotation.State
	Wanted rotation.Control
	// Chart is the authority of the chart's values; its name is empty where unknown.
	Chart rotation.Authority
}

// ReadAuthorities reads the ConfigMap. An error of IsNotFound says that there is none.
func ReadAuthorities(ctx context.Context, from client.Reader, namespace string) (Authorities, error) {
	m := &corev1.ConfigMap{}
	if err := from.Get(ctx, client.ObjectKey{Namespace: namespace, Name: AuthoritiesConfigMap}, m); err != nil {
		return Authorities{}, fmt.Errorf("read ConfigMap %s/%s: %w", namespace, AuthoritiesConfigMap, err)
	}
	return parseAuthorities(m)
}

func parseAuthorities(m *corev1.ConfigMap) (Authorities, error) {
	a := Authorities{Object: m}
	var err error
	if a.State, err = rotation.ParseState([]byte(m.Data[StateKey])); err != nil {
		return a, fmt.Errorf("ConfigMap %s/%s, %s: %w", m.Namespace, m.Name, StateKey, err)
	}
	for key, into := range map[string]any{WantedKey: &a.Wanted, ChartKey: &a.Chart} {
		if text := m.Data[key]; text != "" {
			if err := json.Unmarshal([]byte(text), into); err != nil {
				return a, fmt.Errorf("ConfigMap %s/%s, %s: %w", m.Namespace, m.Name, key, err)
			}
		}
	}
	if a.Wanted.Goal.Sign.Name != "" {
		if err := a.Wanted.Goal.Validate(); err != nil {
			return a, fmt.Errorf("ConfigMap %s/%s, %s: %w", m.Namespace, m.Name, WantedKey, err)
		}
	}
	return a, nil
}

// Want writes what people want, unless somebody wrote meanwhile.
func Want(ctx context.Context, c client.Client, a Authorities, want rotation.Control) error {
	changed := a.Object.DeepCopy()
	changed.Data[WantedKey] = string(want.JSON())
	if err := c.Update(ctx, changed); err != nil {
		return fmt.Errorf("write ConfigMap %s/%s: %w", changed.Namespace, changed.Name, err)
	}
	return nil
}

// MeshSeen reads what is known of the mesh: its injected pods that run or
// will, the replicas of outriggerd, and what those report.
func MeshSeen(ctx context.Context, from client.Reader, lookup Lookup, now time.Time) (rotation.Seen, []rotation.Report, error) {
	members, err := lookup.Members(ctx)
	if err != nil {
		return rotation.Seen{}, nil, err
	}
	var all corev1.PodList
	if err := from.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil {
		return rotation.Seen{}, nil, fmt.Errorf("list pods: %w", err)
	}
	var pods []rotation.Pod
	var unstarted []rotation.Unstarted
	var replicas []string
	for i := range all.Items {
		pod := &all.Items[i]
		switch {
		case pod.Namespace == lookup.SystemNamespace:
			if pod.Labels["app.kubernetes.io/component"] == "outriggerd" && pod.Status.Phase == corev1.PodRunning && !over(pod, now) {
				replicas = append(replicas, pod.Name)
			}
		case slices.Contains(members, pod.Namespace) && proxied(pod) && !over(pod, now):
			pods = append(pods, rotation.Pod{Name: pod.Namespace + "/" + pod.Name, UID: string(pod.UID)})
		case slices.Contains(members, pod.Namespace) && waits(pod):
			if domains := injector.TrustDomains(pod); domains != nil {
				unstarted = append(unstarted, rotation.Unstarted{Name: pod.Namespace + "/" + pod.Name, UID: string(pod.UID), Domains: domains})
			}
		}
	}
	slices.SortFunc(unstarted, func(a, b rotation.Unstarted) int { return strings.Compare(a.Name, b.Name) })
	reports, err := reports(ctx, from, lookup.SystemNamespace)
	if err != nil {
		return rotation.Seen{}, nil, err
	}
	seen := rotation.Merge(pods, replicas, reports, now)
	seen.Unstarted = unstarted
	return seen, reports, nil
}

// proxied reports whether a pod's proxy runs, or may: before its own containers run,
// the proxy does.
func proxied(pod *corev1.Pod) bool {
	if !sidecar.In(pod) {
		return false
	}
	return pod.Status.Phase == corev1.PodRunning || slices.ContainsFunc(pod.Status.InitContainerStatuses, func(c corev1.ContainerStatus) bool {
		return c.Name == injector.ProxyContainer && c.State.Running != nil
	})
}

// waits reports whether a pod's proxy will run, and does not yet.
func waits(pod *corev1.Pod) bool {
	return sidecar.In(pod) && pod.Status.Phase == corev1.PodPending && pod.DeletionTimestamp == nil && !proxied(pod)
}

// over reports whether a pod has ended, or should have.
func over(pod *corev1.Pod, now time.Time) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed ||
		pod.DeletionTimestamp != nil && now.After(pod.DeletionTimestamp.Time)
}

// reports reads what replicas report. One that is damaged is none: its replica counts
// as not heard.
func reports(ctx context.Context, from client.Reader, namespace string) ([]rotation.Report, error) {
	var list corev1.ConfigMapList
	if err := from.List(ctx, &list, client.InNamespace(namespace), client.HasLabels{ReportLabel}); err != nil {
		return nil, fmt.Errorf("list the reports of outriggerd: %w", err)
	}
	var out []rotation.Report
	for i := range list.Items {
		m := &list.Items[i]
		r, err := rotation.DecodeReport(m.BinaryData[reportKey])
		if err == nil && m.Name == reportPrefix+r.Replica {
			out = append(out, r)
		}
	}
	return out, nil
}

// reportConfigMap is where a replica reports. It goes with the replica's pod.
func reportConfigMap(namespace, mesh, replica, uid string, packed []byte) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: reportPrefix + replica, Labels: map[string]string{ReportLabel: mesh},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: replica, UID: types.UID(uid)}},
		},
		BinaryData: map[string][]byte{reportKey: packed},
	}
}
