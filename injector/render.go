package injector

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/iptables"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A rendering is the sidecar that a pod should have. Everything that the API
// server would fill in is written out, so that comparing with a pod that it has
// filled in finds no difference.
type rendering struct {
	init, proxy corev1.Container
	volumes     []corev1.Volume
}

func render(pod *corev1.Pod, s Settings, probes []bootstrap.Probe) (rendering, error) {
	own, ownErr := annotation.ParseProxy(pod.Annotations)
	redirect, redirectErr := annotation.ParseRedirect(pod.Annotations)
	amount, amountErr := resources(pod, s.Resources, own)
	source, sourceErr := identitySource(pod)
	if err := errors.Join(ownErr, redirectErr, amountErr, sourceErr); err != nil {
		return rendering{}, err
	}
	if own.Image != "" {
		s.ProxyImage = own.Image
	}
	if own.LogLevel != "" {
		s.LogLevel = own.LogLevel
	}
	if own.Concurrency != 0 {
		s.Concurrency = own.Concurrency
	}
	if s.PullPolicy == "" {
		s.PullPolicy = corev1.PullIfNotPresent
	}
	settings := bootstrap.Settings{
		Mesh: s.Mesh, TrustDomain: s.TrustDomain, AlsoTrusted: s.AlsoTrusted, ControlPlane: s.ControlPlane, ControlPlaneID: s.ControlPlaneID,
		LogLevel: s.LogLevel, Concurrency: s.Concurrency,
		DrainSeconds: drainSeconds(pod), MemoryLimit: amount.Limits.Memory().Value(), Identity: identityOf(source), Probes: probes,
	}
	// What the agent would refuse must not be admitted: it would never start.
	if err := settings.Validate(); err != nil {
		return rendering{}, fmt.Errorf("settings of container %s: %w", ProxyContainer, err)
	}
	argument, err := json.Marshal(settings)
	if err != nil {
		return rendering{}, err // strings and numbers only: cannot happen
	}
	proxy := proxyContainer(pod, s, amount, string(argument))
	if source.Volume != "" {
		proxy.VolumeMounts = append(proxy.VolumeMounts, corev1.VolumeMount{Name: source.Volume, MountPath: bootstrap.IdentityDir, ReadOnly: true})
	}
	return rendering{
		init:    initContainer(pod, s, amount, redirectSettings(s.Redirect.Union(redirect)).String()),
		proxy:   proxy,
		volumes: volumes(s),
	}, nil
}

// drainSeconds is left out where it is the default, so that a pod that the API
// server has filled in is the same as one from a file.
func drainSeconds(pod *corev1.Pod) int64 {
	if s := grace(pod); s != graceSeconds {
		return int64(s)
	}
	return 0
}

func redirectSettings(r annotation.Redirect) iptables.Settings {
	return iptables.Settings{
		ExcludeInboundPorts:  r.ExcludeInboundPorts,
		ExcludeOutboundPorts: r.ExcludeOutboundPorts,
		ExcludeOutboundCIDRs: r.ExcludeOutboundCIDRs,
		IncludeOutboundCIDRs: r.IncludeOutboundCIDRs,
		ExcludeUIDs:          r.ExcludeUIDs,
	}
}

func initContainer(pod *corev1.Pod, s Settings, amount corev1.ResourceRequirements, argument string) corev1.Container {
	security := security(pod, 0)
	security.Capabilities.Add = []corev1.Capability{"NET_ADMIN"}
	if s.LegacyIptables {
		security.Capabilities.Add = append(security.Capabilities.Add, "NET_RAW")
	}
	return corev1.Container{
		Name:                     InitContainer,
		Image:                    s.InitImage,
		ImagePullPolicy:          s.PullPolicy,
		Args:                     []string{"apply", double(argument)},
		Resources:                amount,
		SecurityContext:          security,
		TerminationMessagePath:   corev1.TerminationMessagePathDefault,
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
}

func proxyContainer(pod *corev1.Pod, s Settings, amount corev1.ResourceRequirements, argument string) corev1.Container {
	return corev1.Container{
		Name:            ProxyContainer,
		Image:           s.ProxyImage,
		ImagePullPolicy: s.PullPolicy,
		RestartPolicy:   new(corev1.ContainerRestartPolicyAlways),
		Args:            []string{"proxy", double(argument)},
		Env: []corev1.EnvVar{
			field(bootstrap.EnvPodName, "metadata.name"),
			field(bootstrap.EnvPodNamespace, "metadata.namespace"),
			field(bootstrap.EnvPodUID, "metadata.uid"),
			field(bootstrap.EnvPodIPs, "status.podIPs"),
			field(bootstrap.EnvServiceAccount, "spec.serviceAccountName"),
			field(bootstrap.EnvNodeName, "spec.nodeName"),
		},
		Resources: amount,
		VolumeMounts: []corev1.VolumeMount{
			{Name: stateVolume, MountPath: bootstrap.StateDir},
			{Name: tokenVolume, MountPath: path.Dir(bootstrap.TokenFile), ReadOnly: true},
			{Name: trustVolume, MountPath: path.Dir(bootstrap.TrustFile), ReadOnly: true},
		},
		// The user's containers start when this succeeds. A failed startup probe
		// restarts the container, so it has ten minutes to wait for outriggerd.
		StartupProbe:   ready(1, 600),
		ReadinessProbe: ready(2, 3),
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{"/outrigger-agent", "drain"}},
		}},
		SecurityContext:          security(pod, bootstrap.ProxyUID),
		TerminationMessagePath:   corev1.TerminationMessagePathDefault,
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
}

// security sets every field that would otherwise come from the pod.
func security(pod *corev1.Pod, user int64) *corev1.SecurityContext {
	context := &corev1.SecurityContext{
		RunAsUser:                new(user),
		RunAsGroup:               new(user),
		RunAsNonRoot:             new(user != 0),
		Privileged:               new(false),
		AllowPrivilegeEscalation: new(false),
		ReadOnlyRootFilesystem:   new(true),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	// A profile of the user's own was not written for us. Otherwise the field stays
	// out, because nodes without AppArmor refuse containers that set it.
	if p := pod.Spec.SecurityContext; p != nil && p.AppArmorProfile != nil && p.AppArmorProfile.Type == corev1.AppArmorProfileTypeLocalhost {
		context.AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	}
	return context
}

func field(name, from string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: from}}}
}

func ready(period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: "/ready", Port: intstr.FromInt32(bootstrap.AgentPort), Scheme: corev1.URISchemeHTTP,
		}},
		PeriodSeconds: period, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: failures,
	}
}

func volumes(s Settings) []corev1.Volume {
	readable := new(int32(0o644))
	trust := corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: mesh.TrustConfigMap}, DefaultMode: readable,
	}}
	if s.ClusterTrustBundle != "" {
		trust = corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: readable, Sources: []corev1.VolumeProjection{
			{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{Name: new(s.ClusterTrustBundle), Path: path.Base(bootstrap.TrustFile)}},
		}}}
	}
	token := corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: readable, Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: s.Mesh, ExpirationSeconds: new(int64(3600)), Path: path.Base(bootstrap.TokenFile)}},
	}}}
	state := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
		Medium: corev1.StorageMediumMemory, SizeLimit: new(resource.MustParse("1Mi")),
	}}
	return []corev1.Volume{
		{Name: stateVolume, VolumeSource: state},
		{Name: tokenVolume, VolumeSource: token},
		{Name: trustVolume, VolumeSource: trust},
	}
}
