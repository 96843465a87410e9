package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

func newCertificateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certificate",
		Short: "Look at the mesh's authorities, and move from one to another",
		Long: `Certificate shows who signs for the mesh and when certificates end, and moves the mesh
to another root, issuer or trust domain without cutting anybody off.

The elected outriggerd does the work, step by step, from what is written in the cluster;
these commands say what is wanted and watch, so that ending one of them ends nothing.`,
	}
	cmd.AddCommand(newStatusCommand(), newRotateCommand(), newPauseCommand(true), newPauseCommand(false), newUndoCommand(), newRecoverCommand())
	return cmd
}

// authorities is how the commands reach the mesh's.
type authorities struct {
	flags           *genericclioptions.ConfigFlags
	systemNamespace string
	output          string
	timeout         time.Duration
	noWait          bool

	client client.Client
	lookup controller.Lookup
}

func (a *authorities) addFlags(cmd *cobra.Command) {
	a.flags = genericclioptions.NewConfigFlags(true)
	a.flags.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&a.systemNamespace, "system-namespace", "outrigger-system", "where the control plane lives")
	cmd.Flags().StringVarP(&a.output, "output", "o", "text", "text or json")
}

func (a *authorities) addWatch(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&a.timeout, "wait", 0, "stop watching after so long; the rotation goes on (0: watch until it is done)")
	cmd.Flags().BoolVar(&a.noWait, "no-wait", false, "say what is wanted, and do not watch")
}

// connect finds the mesh.
func (a *authorities) connect(ctx context.Context) error {
	if a.output != "text" && a.output != "json" {
		return fmt.Errorf("--output is %q; text and json are allowed", a.output)
	}
	in := installation{flags: a.flags}
	c, _, err := in.connect()
	if err != nil {
		return err
	}
	ask := asking{systemNamespace: a.systemNamespace}
	told, err := ask.told(ctx, c)
	if err != nil {
		return err
	}
	values, err := told.values()
	if err != nil {
		return err
	}
	a.client, a.lookup = c, controller.Lookup{Cached: c, OSMMesh: values.OSMMeshName, SystemNamespace: a.systemNamespace}
	return nil
}

func (a *authorities) read(ctx context.Context) (controller.Authorities, error) {
	now, err := controller.ReadAuthorities(ctx, a.client, a.systemNamespace)
	if apierrors.IsNotFound(err) {
		return now, fmt.Errorf("there is no ConfigMap %s in namespace %s yet: the mesh has not started to sign; see the log of outriggerd", controller.AuthoritiesConfigMap, a.systemNamespace)
	}
	return now, err
}

// want changes what is wanted, again when somebody else wrote meanwhile, and then
// watches until the mesh is at rest.
func (a *authorities) want(cmd *cobra.Command, change func(now controller.Authorities, want *rotation.Control) error) error {
	ctx := cmd.Context()
	if err := a.connect(ctx); err != nil {
		return err
	}
	var from rotation.State
	for {
		now, err := a.read(ctx)
		if err != nil {
			return err
		}
		want := now.Wanted
		if err := change(now, &want); err != nil {
			return err
		}
		from = now.State
		err = controller.Want(ctx, a.client, now, want)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	if a.noWait {
		return nil
	}
	return a.watch(cmd, from)
}

// undecided returns an error where MeshRootCertificates say who signs.
func (a *authorities) undecided(ctx context.Context, now controller.Authorities) error {
	roots := controller.RootReader{Client: a.client, Scope: rotation.RootScope{Namespace: a.systemNamespace}}
	goal, err := roots.Goal(ctx, now.State)
	if err == nil && goal != nil {
		err = fmt.Errorf("the MeshRootCertificates of namespace %s say who signs; edit their roles, or delete them to use this command", a.systemNamespace)
	}
	return err
}

// who is the user of the API server, for the record.
func (a *authorities) who(ctx context.Context) string {
	review := &authenticationv1.SelfSubjectReview{}
	if err := a.client.Create(ctx, review); err != nil || review.Status.UserInfo.Username == "" {
		return "outrigger certificate"
	}
	return review.Status.UserInfo.Username
}

// A target is what to rotate to, by flags.
type target struct {
	to, secret, trustDomain, name string
	chart                         bool
}

func (t *target) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.to, "to", "", "the new authority, as JSON or YAML or the name of a file with it (docs/certificates.md)")
	cmd.Flags().StringVar(&t.secret, "secret", "", "sign with the root or intermediate in this Secret of the system namespace")
	cmd.Flags().StringVar(&t.trustDomain, "trust-domain", "", "the new trust domain (default: that of now)")
	cmd.Flags().StringVar(&t.name, "name", "", "what to call the new authority (default: after what it is)")
	cmd.Flags().BoolVar(&t.chart, "chart", false, "rotate to what the chart's values say now")
	cmd.MarkFlagsMutuallyExclusive("to", "secret", "chart")
	cmd.MarkFlagsMutuallyExclusive("chart", "trust-domain")
}

// authority returns what is wanted. Without words it is a new root of the mesh's own.
func (a *authorities) authority(ctx context.Context, t target, now controller.Authorities) (rotation.Authority, error) {
	signing, _ := now.State.Find(now.State.Signing)
	var next rotation.Authority
	switch {
	case t.chart:
		next = now.Chart
	case t.to != "":
		var err error
		if next, err = readAuthority(t.to); err != nil {
			return next, err
		}
	case t.secret != "":
		next.BuiltIn = &rotation.BuiltIn{Secret: t.secret}
	default:
		secret, err := a.freeSecret(ctx, now.State)
		if err != nil {
			return next, err
		}
		next.BuiltIn = &rotation.BuiltIn{Secret: secret}
	}
	if t.name != "" {
		next.Name = t.name
	}
	if t.trustDomain != "" {
		next.TrustDomain = t.trustDomain
	}
	if next.TrustDomain == "" {
		next.TrustDomain = signing.TrustDomain
	}
	next = next.WithDefaults()
	next.Name = now.State.FreeName(next)
	// Under another name it is opened anew, with the roots that it has by then.
	if next.Same(signing.Authority) && (t.name == "" || t.name == signing.Name) {
		return next, fmt.Errorf("%s signs already", signing.Authority)
	}
	return next, next.Validate()
}

// readAuthority reads an authority from words or from a file.
func readAuthority(to string) (rotation.Authority, error) {
	text := []byte(to)
	if !strings.Contains(to, "{") && !strings.Contains(to, "\n") {
		var err error
		if text, err = os.ReadFile(to); err != nil {
			return rotation.Authority{}, fmt.Errorf("read the new authority: %w", err)
		}
	}
	var next rotation.Authority
	if err := yaml.UnmarshalStrict(text, &next); err != nil {
		return next, fmt.Errorf("read the new authority: %w", err)
	}
	return next, nil
}

// freeSecret returns the next Secret in which the mesh may make a root.
func (a *authorities) freeSecret(ctx context.Context, s rotation.State) (string, error) {
	for _, name := range rotation.OwnSecrets() {
		used := slices.ContainsFunc(s.Trusted, func(t rotation.Trusted) bool { return slices.Contains(t.Secrets(), name) })
		err := a.client.Get(ctx, client.ObjectKey{Namespace: a.systemNamespace, Name: name}, &corev1.Secret{})
		switch {
		case apierrors.IsNotFound(err) && !used:
			return name, nil
		case client.IgnoreNotFound(err) != nil:
			return "", fmt.Errorf("look for Secret %s/%s: %w", a.systemNamespace, name, err)
		}
	}
	return "", fmt.Errorf("the mesh may make roots in the Secrets %s of namespace %s, and each is there; delete one that is of no use any more (status names those that are in use)",
		strings.Join(rotation.OwnSecrets(), ", "), a.systemNamespace)
}

func newRotateCommand() *cobra.Command {
	var a authorities
	var t target
	var force []string
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Move the mesh to another root, issuer or trust domain",
		Long: `Rotate moves the mesh to another authority: without flags to a new root of its own. It
goes step by step, and each waits for every injected pod that runs:

  open    the new authority has signed a certificate for outriggerd
  trust   every proxy trusts the old and the new one
  sign    every workload has a certificate of the new one
  serve   outriggerd itself has one, and nobody has an old one
  narrow  every proxy trusts the new one alone
  forget  when the trust domain changed: its old names are forgotten

A pod that is away holds up the step. --force names it, and may cut it off; with --force
alone, that is said about the rotation that is under way.

The exit status is 0 when the rotation is done, 2 when watching ended before.`,
		Example: `  outrigger certificate rotate
  outrigger certificate rotate --trust-domain mesh.example
  outrigger certificate rotate --to '{certManager: {issuer: mesh, kind: ClusterIssuer, rootsConfigMap: mesh-roots}}'
  outrigger certificate rotate --force shop/cart-7d4b9`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, pod := range force {
				if namespace, name, ok := strings.Cut(pod, "/"); !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
					return fmt.Errorf("--force is %q; NAMESPACE/POD is allowed", pod)
				}
			}
			return a.want(cmd, func(now controller.Authorities, want *rotation.Control) error {
				forced, err := a.pods(cmd.Context(), force)
				if err != nil {
					return err
				}
				if len(force) > 0 && t == (target{}) && now.State.Rotation != nil {
					want.Forced = union(want.Forced, forced)
					return nil
				}
				if err := a.undecided(cmd.Context(), now); err != nil {
					return err
				}
				if r := now.State.Rotation; r != nil {
					return fmt.Errorf("a rotation to %s is under way; undo it, or wait for its end", r.Goal.Sign)
				}
				next, err := a.authority(cmd.Context(), t, now)
				if err != nil {
					return err
				}
				*want = rotation.Control{Goal: rotation.Goal{Sign: next}, By: a.who(cmd.Context()), Forced: forced, Chart: t.chart}
				return nil
			})
		},
	}
	a.addFlags(cmd)
	a.addWatch(cmd)
	t.addFlags(cmd)
	cmd.Flags().StringSliceVar(&force, "force", nil, "do not wait for this pod, NAMESPACE/POD; may be repeated. After a change of the trust domain delete it, so that it is made anew")
	return cmd
}

// pods returns names of pods with their uids: what people say of a pod, they do not say
// of the next one of its name.
func (a *authorities) pods(ctx context.Context, names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		namespace, pod, _ := strings.Cut(name, "/")
		found := &corev1.Pod{}
		if err := a.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod}, found); err != nil {
			return nil, fmt.Errorf("look for the pod of --force %s: %w", name, err)
		}
		out = append(out, name+"@"+string(found.UID))
	}
	return out, nil
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

var errAtRest = errors.New("no rotation is under way")

func newPauseCommand(pause bool) *cobra.Command {
	var a authorities
	name, short := "resume", "Let a rotation go on"
	if pause {
		name, short = "pause", "Have a rotation stay in the step that it is in"
	}
	cmd := &cobra.Command{
		Use: name, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.noWait = a.noWait || pause
			return a.want(cmd, func(now controller.Authorities, want *rotation.Control) error {
				if now.State.Rotation == nil {
					return errAtRest
				}
				want.Paused = pause
				return nil
			})
		},
	}
	a.addFlags(cmd)
	if !pause {
		a.addWatch(cmd)
	}
	return cmd
}

func newUndoCommand() *cobra.Command {
	var a authorities
	cmd := &cobra.Command{
		Use:   "undo",
		Short: "Go back to what was there before the rotation that is under way",
		Long: `Undo turns the rotation that is under way: step by step, as safely as it went forth, back
to the authority of before. A rotation that is done is undone by rotating again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.want(cmd, func(now controller.Authorities, want *rotation.Control) error {
				if now.State.Rotation == nil {
					return errAtRest
				}
				if err := a.undecided(cmd.Context(), now); err != nil {
					return err
				}
				want.Undo, want.Paused = true, false
				return nil
			})
		},
	}
	a.addFlags(cmd)
	a.addWatch(cmd)
	return cmd
}

func newRecoverCommand() *cobra.Command {
	var a authorities
	var t target
	var sure bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Bring a mesh back whose root has ended or is lost",
		Long: `Recover has the mesh trust and sign with a new authority at once, without waiting for
anybody: without flags a new root of its own. Pods learn of it from the namespace's roots,
which takes the kubelet a minute or two, and have new certificates then; nothing is
restarted. A mesh that works is cut in the meantime, so --yes is required.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sure {
				return errors.New("recover cuts every connection that is made before pods know the new root; if the root has ended or is lost, say --yes")
			}
			return a.want(cmd, func(now controller.Authorities, want *rotation.Control) error {
				if err := a.undecided(cmd.Context(), now); err != nil {
					return err
				}
				next, err := a.authority(cmd.Context(), t, now)
				if err != nil {
					return err
				}
				if signing, _ := now.State.Find(now.State.Signing); next.TrustDomain != signing.TrustDomain {
					return fmt.Errorf("the trust domain would be %s; to recover only %s is allowed, which is the one that pods know: rotate to another one after that", next.TrustDomain, signing.TrustDomain)
				}
				*want = rotation.Control{Goal: rotation.Goal{Sign: next, Recover: true}, By: a.who(cmd.Context()), Chart: t.chart}
				return nil
			})
		},
	}
	a.addFlags(cmd)
	a.addWatch(cmd)
	t.addFlags(cmd)
	cmd.Flags().BoolVar(&sure, "yes", false, "say that the mesh is to be cut over at once")
	return cmd
}
