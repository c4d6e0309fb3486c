package job

// Input is what a request brings along for its job to read. It may have megabytes,
// and is needed only when the job is dispatched: a scheduler keeps it apart from the
// job.
type Input struct {
	Stdin   []byte
	Upload  []byte
	Secrets map[string][]byte
}

// TakeInput takes the input out of a spec and returns its size in bytes; 0: there is
// none. The names of secrets stay in the spec.
func (s *Spec) TakeInput() (in Input, size int64) {
	values := 0
	for _, v := range s.Secrets {
		values += len(v)
	}
	if size = int64(len(s.Stdin) + len(s.Upload) + values); size == 0 {
		return Input{}, 0
	}
	in = Input{Stdin: s.Stdin, Upload: s.Upload}
	s.Stdin, s.Upload = nil, nil
	if values > 0 {
		in.Secrets = s.Secrets
		names := make(map[string][]byte, len(s.Secrets))
		for name := range s.Secrets {
			names[name] = nil
		}
		s.Secrets = names
	}
	return in, size
}

// PutInput puts the input back.
func (s *Spec) PutInput(in Input) {
	s.Stdin, s.Upload = in.Stdin, in.Upload
	if in.Secrets != nil {
		s.Secrets = in.Secrets
	}
}

// Bytes is about how much memory the spec takes, in bytes.
func (s *Spec) Bytes() int64 {
	n := len(s.Worker) + len(s.Path) + len(s.Command) + len(s.Workdir) + len(s.User) + len(s.Name) +
		len(s.Stdin) + len(s.Upload) + 4*len(s.Retry.ExitCodes)
	for _, a := range s.Args {
		n += len(a) + perItem
	}
	for _, m := range []map[string]string{s.Env, s.Labels} {
		for k, v := range m {
			n += len(k) + len(v) + perItem
		}
	}
	for k, v := range s.Secrets {
		n += len(k) + len(v) + perItem
	}
	return int64(n)
}
