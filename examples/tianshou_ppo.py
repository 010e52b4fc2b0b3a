"""PPO of Tianshou: the actor is the last layer of the embedded language model, the observation its hidden state."""

import gymnasium as gym
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.trainer import OnPolicyTrainerParams

import textgen_env  # noqa: F401  registers the tasks
from textgen_env.integrations.networks import LMHead
from textgen_env.integrations.tianshou import KLPenaltyHook, PolicyNetwork, TianshouVectorEnv, ValueNetwork
from textgen_env.wrappers import VectorLMFeatures


def main(env_id: str = "textgen/Sentiment-v0", steps: int = 7680, seed: int = 0, **task) -> tuple[float, float]:
    """Train; the mean score of the first and of the last 100 episodes."""
    torch.manual_seed(seed)
    tokens = gym.make_vec(env_id, num_envs=16, autoreset_mode="Disabled", **{"kl_coef": 0.01, **task})
    env, scores = TianshouVectorEnv(VectorLMFeatures(tokens)), []
    env.seed(seed)
    actor, width = LMHead.of(tokens), env.observation_space[0].shape[0]
    critic = torch.nn.Sequential(torch.nn.Linear(width, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    policy = DiscreteActorPolicy(actor=PolicyNetwork(actor), action_space=env.action_space[0])
    ppo = PPO(policy=policy, critic=ValueNetwork(critic), optim=AdamOptimizerFactory(lr=1e-3), gamma=1.0, ent_coef=0.0)
    collector = Collector(ppo, env, VectorReplayBuffer(1024, 16), on_step_hook=KLPenaltyHook(env))
    collector.set_on_episode_done_hook(lambda episode: scores.append(episode.info.score[-1]))
    settings = {"max_epochs": 1, "epoch_num_steps": steps, "collection_step_num_env_steps": 512, "verbose": False}
    ppo.run_training(
        OnPolicyTrainerParams(training_collector=collector, batch_size=128, update_step_num_repetitions=3, **settings)
    )
    return sum(scores[:100]) / 100, sum(scores[-100:]) / 100


if __name__ == "__main__":
    print("mean score: {:.3f} -> {:.3f}".format(*main()))
