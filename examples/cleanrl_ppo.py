"""PPO in one file, in the manner of CleanRL: `b_` is a batch, `mb_` a minibatch. Returns the first and last scores."""

import gymnasium as gym
import torch
from torch.distributions import Categorical

import textgen_env  # noqa: F401  registers the tasks
from textgen_env.integrations.networks import LMHead
from textgen_env.wrappers import VectorLMFeatures, VectorScoredCutsEnd


def main(env_id: str = "textgen/Sentiment-v0", iterations: int = 15, seed: int = 0, slots: int = 16, **task):
    torch.manual_seed(seed)
    envs = VectorLMFeatures(VectorScoredCutsEnd(gym.make_vec(env_id, num_envs=slots, **({"kl_coef": 0.01} | task))))
    envs.unwrapped.bind_policy(lambda _: dist.logits * envs.unwrapped.temperature)  # rewards hold the exact KL
    actor, critic = LMHead.of(envs), torch.nn.Linear(envs.single_observation_space.shape[0], 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3)
    obs, scores = torch.from_numpy(envs.reset(seed=seed)[0]), []
    for _ in range(iterations):
        b_obs, b_action, b_log_prob, b_reward, b_done = torch.zeros(32, slots, obs.shape[1]), *torch.zeros(4, 32, slots)
        for t in range(32):
            dist = Categorical(logits=actor(obs).detach())
            b_obs[t], b_action[t] = obs, dist.sample()
            b_log_prob[t] = dist.log_prob(b_action[t])
            obs, reward, done, _, infos = envs.step(b_action[t].long().numpy())  # cut and scored is done
            obs, b_reward[t], b_done[t] = torch.from_numpy(obs), torch.from_numpy(reward), torch.from_numpy(done)
            scores.extend(infos["final_info"]["score"][done] if done.any() else [])
        b_value, b_advantage = critic(torch.cat([b_obs, obs[None]]))[..., 0].detach(), torch.zeros(33, slots)
        for t in reversed(range(32)):  # GAE with γ = 1, λ = 0.95
            delta = b_reward[t] + (1 - b_done[t]) * b_value[t + 1] - b_value[t]
            b_advantage[t] = delta + 0.95 * (1 - b_done[t]) * b_advantage[t + 1]
        batch = (b_obs, b_action, b_log_prob, b_advantage[:-1], (b_advantage + b_value)[:-1])
        for rows in [rows for _ in range(3) for rows in torch.randperm(32 * slots).split(8 * slots)]:
            mb_obs, mb_action, mb_log_prob, mb_advantage, mb_return = (b.flatten(0, 1)[rows] for b in batch)
            mb_advantage = (mb_advantage - mb_advantage.mean()) / mb_advantage.std()
            ratio = (Categorical(logits=actor(mb_obs)).log_prob(mb_action) - mb_log_prob).exp()
            loss = -torch.min(ratio * mb_advantage, ratio.clamp(0.8, 1.2) * mb_advantage).mean()
            loss += 0.5 * (critic(mb_obs)[:, 0] - mb_return).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return sum(scores[:60]) / 60, sum(scores[-60:]) / 60


if __name__ == "__main__":
    print("mean score: {:.3f} -> {:.3f}".format(*main()))
